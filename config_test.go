package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

var leastEnv = map[string]string{
	"AUTH_URL":  "https://consent.example/start",
	"REDIS_URL": "redis://127.0.0.1:6379",
	"JWKS_URL":  "https://login.example/jwks.json",
}

// loadTestConfig loads what leastEnv with changes says.
func loadTestConfig(changes map[string]string) (config, error) {
	env := maps.Clone(leastEnv)
	maps.Copy(env, changes)
	return loadConfig(func(name string) string { return env[name] })
}

// Each variable has its default, and reaches its own field.
func TestConfigFields(t *testing.T) {
	fields := map[string]func(config) any{
		"ADDR":                func(c config) any { return c.addr },
		"AUTH_URL":            func(c config) any { return c.authURL },
		"REDIS_URL":           func(c config) any { return c.redis.Open(time.Second).(*redis.Client).Options().Addr },
		"REDIS_WAIT_REPLICAS": func(c config) any { return c.replicas },
		"KEY_PREFIX":          func(c config) any { return c.keyPrefix },
		"SESSION_TTL":         func(c config) any { return c.sessionTTL },
		"SEAL_RECORDS":        func(c config) any { return c.sealRecords },
		"JWKS_URL":            func(c config) any { return c.tokens.JWKSURL },
		"JWT_ISSUER":          func(c config) any { return c.tokens.Issuer },
		"JWT_AUDIENCE":        func(c config) any { return c.tokens.Audience },
		"JWT_ALGORITHMS":      func(c config) any { return c.tokens.Algorithms },
		"JWT_CLIENT_CLAIM":    func(c config) any { return c.tokens.ClientClaims },
		"JWT_MAX_LIFETIME":    func(c config) any { return c.tokens.MaxLifetime },
		"STORE_TIMEOUT":       func(c config) any { return c.storeTimeout },
		"JWT_TYP":             func(c config) any { return c.tokens.RequireATJWT },
		"TRUSTED_PROXIES":     func(c config) any { return c.trusted },
		"CLIENTS_FILE":        func(c config) any { return c.clients.Find("x") == nil },

		"CLIENT_CERT_HEADER": func(c config) any { return c.certHeader },
		"MAX_IN_FLIGHT":      func(c config) any { return c.maxInFlight },
		"DRAIN_DELAY":        func(c config) any { return c.drainDelay },
		"SHUTDOWN_GRACE":     func(c config) any { return c.shutdownGrace },
		"METRICS_ADDR":       func(c config) any { return c.metricsAddr },
		"LOG_LEVEL":          func(c config) any { return c.logLevel },
	}
	noClients := filepath.Join(t.TempDir(), "clients.json")
	testkit.Must(t, os.WriteFile(noClients, []byte(`{"clients": {}}`), 0o600))
	unset, err := loadTestConfig(nil)
	testkit.Must(t, err)
	for _, test := range []struct{ name, fallback, value, want string }{
		{"ADDR", ":8080", "127.0.0.1:1", "127.0.0.1:1"},
		{"AUTH_URL", "https://consent.example/start?sess_id=", "https://c.example/", "https://c.example/?sess_id="},
		{"REDIS_URL", "127.0.0.1:6379", "redis://h:1", "h:1"},
		{"REDIS_WAIT_REPLICAS", "0", "2", "2"},
		{"KEY_PREFIX", "auth_session:", "p:", "p:"},
		{"SESSION_TTL", "30m0s", "1h", "1h0m0s"},
		{"SEAL_RECORDS", "false", "true", "true"},
		{"JWKS_URL", "https://login.example/jwks.json", "https://h/x", "https://h/x"},
		{"JWT_ISSUER", "", "https://i.example/", "https://i.example/"},
		{"JWT_AUDIENCE", "", "a", "a"},
		{"JWT_ALGORITHMS", "[RS256 PS256 ES256 EdDSA]", "ES384, RS512", "[ES384 RS512]"},
		{"JWT_CLIENT_CLAIM", "[client_id azp sub]", "org_id, x", "[org_id x]"},
		{"JWT_MAX_LIFETIME", "24h0m0s", "1h", "1h0m0s"},
		{"STORE_TIMEOUT", "1s", "2s", "2s"},
		{"JWT_TYP", "false", "at+jwt", "true"},
		{"CLIENT_CERT_HEADER", "", "x-client-cert", "X-Client-Cert"},
		{"CLIENTS_FILE", "false", noClients, "true"},
		{"TRUSTED_PROXIES", "[]", "10.0.0.0/8, fd00::/8", "[10.0.0.0/8 fd00::/8]"},
		{"MAX_IN_FLIGHT", "2048", "7", "7"},
		{"DRAIN_DELAY", "0s", "3s", "3s"},
		{"SHUTDOWN_GRACE", "10s", "4s", "4s"},
		{"METRICS_ADDR", "", ":9090", ":9090"},
		{"LOG_LEVEL", "INFO", "warn", "WARN"},
	} {
		field := fields[test.name]
		if got := fmt.Sprint(field(unset)); got != test.fallback {
			t.Errorf("%s = %s without the variable, want %s", test.name, got, test.fallback)
		}
		c, err := loadTestConfig(map[string]string{test.name: test.value})
		testkit.Must(t, err)
		if got := fmt.Sprint(field(c)); got != test.want {
			t.Errorf("%s=%s makes %s, want %s", test.name, test.value, got, test.want)
		}
		delete(fields, test.name)
	}
	if len(fields) > 0 {
		t.Errorf("fields without a row: %v", fields)
	}
}

func TestConfigVariables(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	empty := filepath.Join(t.TempDir(), "empty")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	clientsFile := filepath.Join(t.TempDir(), "clients.json")
	testkit.Must(t, os.WriteFile(clientsFile, []byte(`{"clients": {"acme": {"session_ttl": "1m"}}}`), 0o600))
	testkit.Must(t, os.WriteFile(password, []byte("pw\n"), 0o600))
	testkit.Must(t, os.WriteFile(empty, nil, 0o600))
	testkit.Must(t, os.WriteFile(ca, redistest.NewCA(t).PEM, 0o600))
	cert := redistest.NewCA(t).Issue(t, "client", time.Now().Add(time.Hour))
	sentinel, cluster := map[string]string{"REDIS_MODE": "sentinel"}, map[string]string{"REDIS_MODE": "cluster"}
	tests := []struct {
		name       string
		good, evil []string
		with       map[string]string
	}{
		{"ADDR", []string{"", ":0", ":8080", "127.0.0.1:65535", "[::1]:80", "localhost:1"},
			[]string{"8080", "127.0.0.1", ":65536", ":http", "a:b:c"}, nil},
		{"AUTH_URL", []string{"https://c.example", "https://c.example/a?b=c&d", "http://localhost/x",
			"http://127.0.0.2:1/x", "http://[::1]/"},
			[]string{"", "c.example", "/start", "http://c.example/", "ftp://c.example/", "https://", "https:///x",
				"https://u:p@c.example/", "https://c.example/#f", "https://c.example/#", "https://c.example/?sess_id=1",
				"https://c.example/%zz", "https://c.example/a b", "https://c.example:65536/", "https://c.example/ä"}, nil},
		{"REDIS_URL", []string{"redis://h", "redis://u:p@h:1/2", "rediss://h", "unix:///run/redis.sock",
			"redis://h?pool_size=5"},
			[]string{"", "h:6379", "http://h", "redis://h/x", "redis://u:s3cret@h:x", "redis://u:s3cret@h?nope=1",
				"redis://u:s3cret@%zz", "redis://u:x/s3cret@h", "redis://u:x?s3cret@h", "redis://h?pool_size=-1"}, nil},
		{"REDIS_URL", []string{"redis://s1:26379?master_name=m&addr=s2:26379", "rediss://u:p@s1:26379?master_name=m"},
			[]string{"redis://s1:26379", "redis://s1?master_name=m&replica_only=true",
				"unix:///run/redis.sock?master_name=m"}, sentinel},
		{"REDIS_URL", []string{"redis://n1:6379?addr=n2:6379&addr=n3:6379"},
			[]string{"unix:///run/redis.sock", "redis://n1?addr=nope"}, cluster},
		{"JWT_TYP", []string{"", "at+jwt"}, []string{"JWT", "AT+JWT", "application/at+jwt", "at+jwt "}, nil},
		{"CLIENT_CERT_HEADER", []string{"", "Client-Cert", "x1"},
			[]string{"a_b", "a b", "a:", "é", " a", "a,b"}, nil},
		{"TRUSTED_PROXIES", []string{"", "10.1.2.3/8", "::/0", "192.0.2.1/32,2001:db8::/32"},
			[]string{"10.0.0.1", "10.0.0.0/33", "10.0.0.0/8,", "::ffff:10.0.0.0/104", "fe80::%eth0/64", "proxy"}, nil},
		{"CLIENTS_FILE", []string{"", clientsFile}, []string{"/nonexistent", empty, ca, "/"}, nil},
		{"CLIENTS_FILE", nil, []string{clientsFile}, map[string]string{"STORE_TIMEOUT": "31s"}},
		{"REDIS_MODE", []string{"", "standalone", "cluster"}, []string{"single", "Cluster", "sentinel "}, nil},
		{"REDIS_PASSWORD_FILE", []string{"", password}, []string{"/nonexistent", empty}, nil},
		{"REDIS_CA_FILE", []string{"", ca}, []string{"/nonexistent", empty, password},
			map[string]string{"REDIS_URL": "rediss://h"}},
		{"REDIS_CERT_FILE", []string{cert}, []string{"", "/nonexistent", ca},
			map[string]string{"REDIS_URL": "rediss://h", "REDIS_KEY_FILE": cert}},
		{"REDIS_CERT_FILE", []string{""}, []string{cert}, map[string]string{"REDIS_URL": "rediss://h"}},
		{"REDIS_TLS_SERVER_NAME", []string{"", "redis.test"}, nil, map[string]string{"REDIS_URL": "rediss://h"}},
		{"KEY_PREFIX", []string{"", "x", "{tag}:"}, nil, nil},
		{"SESSION_TTL", []string{"", "1m", "168h", "90s", "2h45m"},
			[]string{"59s", "168h1s", "30", "-1h", "1d", "soon"}, nil},
		{"JWKS_URL", []string{"https://h/x", "http://localhost:1/x", "http://127.0.0.1/x", "http://[::1]/x",
			"file:///etc/jwks.json"},
			[]string{"", "http://h/x", "jwks.json", "file://jwks.json", "file:jwks.json", "ftp://h/x", "https://"}, nil},
		{"JWT_ALGORITHMS", []string{"", "RS256", "RS384, RS512", "PS256,PS384,PS512,ES256,ES384,ES512,EdDSA"},
			[]string{"HS256", "none", "RS256,none", "rs256", "RS256,,ES256", "A"}, nil},
		{"JWT_CLIENT_CLAIM", []string{"", "org_id", "a, b"}, []string{",", "a,", " "}, nil},
		{"JWT_MAX_LIFETIME", []string{"", "1h", "720h"}, []string{"0s", "-1h", "x"}, nil},
		{"STORE_TIMEOUT", []string{"", "50ms", "10s", "1m"}, []string{"0", "2m", "x"}, nil},
		{"STORE_TIMEOUT", []string{"30s"}, []string{"30001ms", "2m"}, map[string]string{"SESSION_TTL": "1m"}},
		{"REDIS_WAIT_REPLICAS", []string{"", "0", "1", "100"}, []string{"-1", "101", "x"}, nil},
		{"MAX_IN_FLIGHT", []string{"", "1", "1000000"}, []string{"0", "-1", "1000001", "many", "1.5"}, nil},
		{"DRAIN_DELAY", []string{"", "0s", "15s"}, []string{"-1s", "x"}, nil},
		{"SHUTDOWN_GRACE", []string{"", "1s", "5m"}, []string{"-1s", "x"}, nil},
		{"METRICS_ADDR", []string{"", ":9090", "127.0.0.1:0"}, []string{"9090", ":65536", ":8080"}, nil},
		{"METRICS_ADDR", []string{":0", ":8080"}, nil, map[string]string{"ADDR": ":0"}},
		{"SEAL_RECORDS", []string{"", "true", "false"}, []string{"1", "TRUE", "yes", " true"}, nil},
		{"LOG_LEVEL", []string{"", "debug", "info", "warn", "error"}, []string{"INFO", "trace", "info+2"}, nil},
	}
	for _, test := range tests {
		load := func(value string) error {
			env := map[string]string{test.name: value}
			maps.Copy(env, test.with)
			_, err := loadTestConfig(env)
			return err
		}
		for _, value := range test.good {
			if err := load(value); err != nil {
				t.Errorf("%s=%q: %v", test.name, value, err)
			}
		}
		for _, value := range test.evil {
			err := load(value)
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
		"ADDR": "x", "REDIS_MODE": "x", "SESSION_TTL": "x", "JWT_ALGORITHMS": "x", "JWT_CLIENT_CLAIM": ",",
		"JWT_MAX_LIFETIME": "x", "STORE_TIMEOUT": "x", "MAX_IN_FLIGHT": "x", "DRAIN_DELAY": "x", "SHUTDOWN_GRACE": "x",
		"METRICS_ADDR": "y", "LOG_LEVEL": "x", "JWT_TYP": "x", "CLIENT_CERT_HEADER": "_", "TRUSTED_PROXIES": "x",
		"CLIENTS_FILE": "/nonexistent", "SEAL_RECORDS": "x", "REDIS_PASSWORD_FILE": "/nonexistent",
		"REDIS_CA_FILE": "/nonexistent",
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
	testkit.Must(t, os.WriteFile(file, []byte("from file\r\n"), 0o600))
	for mode, url := range map[string]string{
		"standalone": "redis://u:p@h", "cluster": "redis://u:p@h", "sentinel": "redis://su:sp@h?master_name=m&username=u",
	} {
		c, err := loadTestConfig(map[string]string{"REDIS_MODE": mode, "REDIS_URL": url, "REDIS_PASSWORD_FILE": file})
		testkit.Must(t, err)
		var credentials func(context.Context) (user, password string, err error)
		switch client := c.redis.Open(time.Second).(type) {
		case *redis.ClusterClient:
			credentials = client.Options().CredentialsProviderContext
		case *redis.Client:
			credentials = client.Options().CredentialsProviderContext
		}
		user, password, err := credentials(t.Context())
		testkit.Must(t, err)
		if user != "u" || password != "from file" {
			t.Errorf("%s: user %q with password %q, want u with the file's", mode, user, password)
		}
	}
}

// -h and the README's table have the same variables, with the same defaults.
func TestConfigHelp(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	testkit.Must(t, err)
	_, table, _ := strings.Cut(string(readme), "| variable | default |")
	table, _, _ = strings.Cut(table, "\n\n")
	want := map[string]string{} // default by name
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		names, fallbacks := strings.Split(cells[1], ","), strings.Split(cells[2], "`, `")
		for i, name := range names {
			fallback := strings.Trim(fallbacks[min(i, len(fallbacks)-1)], " `")
			if fallback == "required" || fallback == "off" {
				fallback = ""
			}
			want[strings.Trim(name, " `")] = fallback
		}
	}
	e := fromEnv{get: func(string) string { return "" }}
	e.config()
	got := map[string]string{}
	for _, v := range e.known {
		got[v.name] = v.fallback
		if v.help == "" {
			t.Errorf("%s has no help text", v.name)
		}
	}
	if len(got) < 18 || !maps.Equal(got, want) {
		t.Errorf("variables = %v, want the README's %v", got, want)
	}
	var help strings.Builder
	printVariables(&help)
	for name, fallback := range want {
		if !strings.Contains(help.String(), name) || !strings.Contains(help.String(), fallback) {
			t.Errorf("-h does not have %s with its default %q", name, fallback)
		}
	}
}

// The recipes of docs/identity-providers.md are settings that the service takes, whole ones.
func TestConfigIdentityProviders(t *testing.T) {
	text, err := os.ReadFile("docs/identity-providers.md")
	testkit.Must(t, err)
	recipes := strings.Split(string(text), "\n```\n")
	if len(recipes) != 9 { // text and recipe by turns
		t.Fatalf("%d recipes, want 4", len(recipes)/2)
	}
	for i := 1; i < len(recipes); i += 2 {
		env := map[string]string{}
		for line := range strings.Lines(recipes[i]) {
			setting, _, _ := strings.Cut(line, " # ")
			if name, value, ok := strings.Cut(setting, "="); ok {
				env[name] = strings.NewReplacer("<", "", ">", "", " ", "").Replace(strings.TrimSpace(value))
			}
		}
		c, err := loadTestConfig(env)
		if err != nil || len(env) != 4 || c.tokens.Issuer != env["JWT_ISSUER"] || c.tokens.Audience != env["JWT_AUDIENCE"] ||
			strings.Join(c.tokens.ClientClaims, ",") != env["JWT_CLIENT_CLAIM"] ||
			!strings.Contains(env["JWKS_URL"], strings.Split(env["JWT_ISSUER"], "/")[2]) {
			t.Errorf("recipe %v: %v", env, err)
		}
	}
}
