package main

import (
	"log/slog"
	"testing"

	"authsession/internal/testkit"
)

func TestWarn(t *testing.T) {
	const issuer, audience, verify = "JWT_ISSUER", "JWT_AUDIENCE", "skip_verify"
	const redis = "REDIS_URL"
	for _, test := range []struct {
		name string
		env  map[string]string
		want map[string]bool // what is warned of
	}{
		{"nothing set", nil, map[string]bool{issuer: true, audience: true}},
		{"both set", map[string]string{issuer: "i", audience: "a"}, nil},
		{"issuer set", map[string]string{issuer: "i"}, map[string]bool{audience: true}},
		{"rediss", map[string]string{issuer: "i", audience: "a", redis: "rediss://h"}, nil},
		{"skip_verify=false", map[string]string{issuer: "i", audience: "a", redis: "rediss://h?skip_verify=false"}, nil},
		{"skip_verify=true", map[string]string{issuer: "i", audience: "a", redis: "rediss://h?skip_verify=true"},
			map[string]bool{verify: true}},
	} {
		cfg, err := loadTestConfig(test.env)
		testkit.Must(t, err)
		var log testkit.Log
		warn(cfg, slog.New(slog.NewJSONHandler(&log, nil)))
		for _, what := range []string{issuer, audience, verify} {
			if log.Has(what) != test.want[what] {
				t.Errorf("%s: warned of %s: %t, want %t: %s", test.name, what, log.Has(what), test.want[what], &log)
			}
		}
	}
}
