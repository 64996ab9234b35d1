package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var leastEnv = map[string]string{
	"AUTH_URL":  "https://consent.example/start",
	"REDIS_URL": "redis://127.0.0.1:6379",
	"JWKS_URL":  "https://login.example/jwks.json",
}

func loadTestConfig(changes map[string]string) (config, error) {
	env := maps.Clone(leastEnv)
	maps.Copy(env, changes)
	return loadConfig(func(name string) string { return env[name] })
}

func TestConfigDefaults(t *testing.T) {
	c, err := loadTestConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.addr != ":8080" || c.keyPrefix != "auth_session:" || c.sessionTTL != 30*time.Minute || c.maxLifetime != 24*time.Hour ||
		c.storeTimeout != time.Second || c.maxInFlight != 2048 || c.drainDelay != 0 || c.shutdownGrace != 10*time.Second ||
		c.issuer != "" || c.audience != "" || c.metricsAddr != "" || c.logLevel != 0 || c.redis.standalone == nil {
		t.Errorf("defaults = %+v", c)
	}
	if got := strings.Join(c.clientClaims, ","); got != "client_id,azp,sub" {
		t.Errorf("JWT_CLIENT_CLAIM = %s", got)
	}
	if len(c.algorithms) != 4 || c.algorithms[0] != "RS256" || c.algorithms[3] != "EdDSA" {
		t.Errorf("JWT_ALGORITHMS = %v", c.algorithms)
	}
}

func TestConfigVariables(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(password, []byte("pw\n"), 0o600))
	must(t, os.WriteFile(empty, nil, 0o600))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, newCA(t).pem, 0o600))

	const sentinels = "redis://s1:26379?master_name=m&addr=s2:26379"
	tests := []struct {
		name       string
		good, evil []string
		with       map[string]string
	}{
		{"ADDR", []string{"", ":0", ":8080", "127.0.0.1:65535", "[::1]:80", "localhost:1"}, []string{"8080", "127.0.0.1", ":65536", ":http", "a:b:c"}, nil},
		{"AUTH_URL", []string{"https://c.example", "https://c.example/a?b=c&d", "http://localhost/x", "http://127.0.0.2:1/x", "http://[::1]/"},
			[]string{"", "c.example", "/start", "http://c.example/", "ftp://c.example/", "https://", "https:///x", "https://u:p@c.example/", "https://c.example/#f", "https://c.example/#", "https://c.example/?sess_id=1", "https://c.example/%zz", "https://c.example/a b", "https://c.example:65536/", "https://c.example/ä"}, nil},
		{"REDIS_URL", []string{"redis://h", "redis://u:p@h:1/2", "rediss://h", "unix:///run/redis.sock", "redis://h?pool_size=5"}, []string{"", "h:6379", "http://h", "redis://h/x", "redis://u:s3cret@h:x", "redis://u:s3cret@h?nope=1", "redis://u:s3cret@%zz", "redis://u:x/s3cret@h", "redis://u:x?s3cret@h", "redis://h?pool_size=-1"}, nil},
		{"REDIS_URL", []string{sentinels, "rediss://u:p@s1:26379?master_name=m"}, []string{"redis://s1:26379", "redis://s1?master_name=m&replica_only=true", "unix:///run/redis.sock?master_name=m"}, map[string]string{"REDIS_MODE": "sentinel"}},
		{"REDIS_URL", []string{"redis://n1:6379?addr=n2:6379&addr=n3:6379"}, []string{"unix:///run/redis.sock", "redis://n1?addr=nope"}, map[string]string{"REDIS_MODE": "cluster"}},
		{"REDIS_MODE", []string{"", "standalone", "cluster"}, []string{"single", "Cluster", "sentinel "}, nil},
		{"REDIS_PASSWORD_FILE", []string{"", password}, []string{"/nonexistent", empty}, nil},
		{"REDIS_CA_FILE", []string{"", ca}, []string{"/nonexistent", empty, password}, map[string]string{"REDIS_URL": "rediss://h"}},
		{"KEY_PREFIX", []string{"", "x", "{tag}:"}, nil, nil},
		{"SESSION_TTL", []string{"", "1m", "168h", "90s", "2h45m"}, []string{"59s", "168h1s", "30", "-1h", "1d", "soon"}, nil},
		{"JWKS_URL", []string{"https://h/x", "http://localhost:1/x", "http://127.0.0.1/x", "http://[::1]/x", "file:///etc/jwks.json"}, []string{"", "http://h/x", "jwks.json", "file://jwks.json", "file:jwks.json", "ftp://h/x", "https://"}, nil},
		{"JWT_ALGORITHMS", []string{"", "RS256", "RS384, RS512", "PS256,PS384,PS512,ES256,ES384,ES512,EdDSA"}, []string{"HS256", "none", "RS256,none", "rs256", "RS256,,ES256", "A"}, nil},
		{"JWT_CLIENT_CLAIM", []string{"", "org_id", "a, b"}, []string{",", "a,", " "}, nil},
		{"JWT_MAX_LIFETIME", []string{"", "1h", "720h"}, []string{"0s", "-1h", "x"}, nil},
		{"STORE_TIMEOUT", []string{"", "50ms", "10s"}, []string{"0", "2m", "x"}, nil},
		{"MAX_IN_FLIGHT", []string{"", "1", "1000000"}, []string{"0", "-1", "1000001", "many", "1.5"}, nil},
		{"DRAIN_DELAY", []string{"", "0s", "15s"}, []string{"-1s", "x"}, nil},
		{"SHUTDOWN_GRACE", []string{"", "1s", "5m"}, []string{"-1s", "x"}, nil},
		{"LOG_LEVEL", []string{"", "debug", "info", "warn", "error"}, []string{"INFO", "trace", "info+2"}, nil},
	}
	for _, test := range tests {
		for _, value := range test.good {
			env := maps.Clone(test.with)
			if env == nil {
				env = map[string]string{}
			}
			env[test.name] = value
			if _, err := loadTestConfig(env); err != nil {
				t.Errorf("%s=%q: %v", test.name, value, err)
			}
		}
		for _, value := range test.evil {
			env := map[string]string{test.name: value}
			maps.Copy(env, test.with)
			_, err := loadTestConfig(env)
			switch {
			case err == nil:
				t.Errorf("%s=%q is taken", test.name, value)
			case !strings.HasPrefix(err.Error(), test.name+" ") || strings.Contains(err.Error(), "; "):
				t.Errorf("%s=%q: %v, want that variable alone", test.name, value, err)
			case strings.Contains(err.Error(), "s3cret"):
				t.Errorf("%s: the message holds the password: %v", test.name, err)
			}
		}
	}
}

func TestConfigAllWrong(t *testing.T) {
	env := map[string]string{
		"ADDR": "x", "REDIS_MODE": "x", "SESSION_TTL": "x", "JWT_ALGORITHMS": "x", "JWT_CLIENT_CLAIM": ",", "JWT_MAX_LIFETIME": "x", "STORE_TIMEOUT": "x",
		"MAX_IN_FLIGHT": "x", "DRAIN_DELAY": "x", "SHUTDOWN_GRACE": "x", "LOG_LEVEL": "x", "REDIS_PASSWORD_FILE": "/nonexistent", "REDIS_CA_FILE": "/nonexistent",
	}
	_, err := loadConfig(func(name string) string { return env[name] })
	if err == nil {
		t.Fatal("all wrong, and no error")
	}
	env["AUTH_URL"], env["JWKS_URL"] = "", "" // required
	for name := range env {
		if n := strings.Count("; "+err.Error(), "; "+name+" "); n != 1 {
			t.Errorf("%s is named %d times, want once: %v", name, n, err)
		}
	}
}

func TestConfigAuthURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://c.example":          "https://c.example?sess_id=",
		"https://c.example/a":        "https://c.example/a?sess_id=",
		"https://c.example/a?":       "https://c.example/a?sess_id=",
		"https://c.example/a?b=%20c": "https://c.example/a?b=%20c&sess_id=",
	} {
		if c, err := loadTestConfig(map[string]string{"AUTH_URL": text}); err != nil || c.authURL != want {
			t.Errorf("AUTH_URL=%s makes %s, %v, want %s", text, c.authURL, err, want)
		}
	}
}

// The file's password replaces the URL's; in sentinel mode it is the data nodes'.
func TestConfigRedisPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte("from file\r\n"), 0o600))
	load := func(mode, url string) redisOptions {
		c, err := loadTestConfig(map[string]string{"REDIS_MODE": mode, "REDIS_URL": url, "REDIS_PASSWORD_FILE": file})
		must(t, err)
		return c.redis
	}
	if o := load("standalone", "redis://u:p@h").standalone; o.Username != "u" || o.Password != "from file" {
		t.Errorf("standalone: %q %q", o.Username, o.Password)
	}
	if o := load("cluster", "redis://u:p@h").cluster; o.Username != "u" || o.Password != "from file" {
		t.Errorf("cluster: %q %q", o.Username, o.Password)
	}
	if o := load("sentinel", "redis://su:sp@h?master_name=m&username=u").sentinel; o.Username != "u" || o.Password != "from file" || o.SentinelUsername != "su" || o.SentinelPassword != "sp" {
		t.Errorf("sentinel: %q %q %q %q", o.Username, o.Password, o.SentinelUsername, o.SentinelPassword)
	}
}
