package main

import (
	"log/slog"
	"testing"

	"authsession/internal/testkit"
)

func TestVersionText(t *testing.T) {
	const revision, pseudo = "0123456789abcdef0123456789abcdef01234567", "v0.0.0-20261124104519-"
	for _, test := range []struct{ version, revision, goVersion, want string }{
		{"v1.2.0", revision, "go1.26.0", "authsession v1.2.0 " + revision + " go1.26.0"},
		{pseudo + "0123456789ab+dirty", revision, "go1.26.0", "authsession " + pseudo + "0123456789ab+dirty go1.26.0"},
		{pseudo + "ffffffffffff", revision, "", "authsession " + pseudo + "ffffffffffff " + revision},
		{pseudo + "0123456789ab", "", "go1.26.0", "authsession " + pseudo + "0123456789ab go1.26.0"},
		{"(devel)", "", "go1.26.0", "authsession (devel) go1.26.0"},
		{"", revision, "", "authsession " + revision},
	} {
		if got := versionText(test.version, test.revision, test.goVersion); got != test.want {
			t.Errorf("versionText of %q = %q, want %q", test, got, test.want)
		}
	}
}

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
		{"skip_verify=true behind a sentinel", map[string]string{issuer: "i", audience: "a", "REDIS_MODE": "sentinel",
			redis: "rediss://h?master_name=m&skip_verify=true"}, map[string]bool{verify: true}},
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
