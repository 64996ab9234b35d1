package config_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"authsession/internal/config"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// load loads the required variables, with env on top of them.
func load(env map[string]string) (config.Config, error) {
	all := map[string]string{
		"AUTH_URL":  "https://consent.example/start",
		"REDIS_URL": "rediss://u:p@127.0.0.1:6379",
		"JWKS_URL":  "https://login.example/jwks.json",
	}
	maps.Copy(all, env)
	return config.Load(func(name string) string { return all[name] })
}

// writeFile writes a file for the test and returns its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// fields returns the field that each variable sets.
func fields(t *testing.T, c config.Config) map[string]any {
	t.Helper()
	client := c.Redis.Open(time.Second)
	defer client.Close()
	values := map[string]any{
		"ADDR": c.Addr, "AUTH_URL": c.AuthURL, "REDIS_MODE": fmt.Sprintf("%T", client), "KEY_PREFIX": c.KeyPrefix,
		"REDIS_WAIT_REPLICAS": c.WaitReplicas, "SESSION_TTL": c.SessionTTL, "SEAL_RECORDS": c.SealRecords,
		"JWKS_URL": c.Tokens.JWKSURL, "JWT_ISSUER": c.Tokens.Issuer, "JWT_AUDIENCE": c.Tokens.Audience,
		"JWT_ALGORITHMS": c.Tokens.Algorithms, "JWT_CLIENT_CLAIM": c.Tokens.ClientClaims,
		"JWT_MAX_LIFETIME": c.Tokens.MaxLifetime, "JWT_TYP": c.Tokens.RequireATJWT,
		"JWT_SCOPE_CLAIM":    c.Tokens.ScopeClaims,
		"CLIENT_CERT_HEADER": c.ClientCertHeader, "TRUSTED_PROXIES": c.TrustedProxies, "STORE_TIMEOUT": c.StoreTimeout,
		"MAX_IN_FLIGHT": c.MaxInFlight, "DRAIN_DELAY": c.DrainDelay, "SHUTDOWN_GRACE": c.ShutdownGrace,
		"METRICS_ADDR": c.MetricsAddr, "LOG_LEVEL": c.LogLevel, "CLIENTS_FILE": c.Clients.Find("other") == nil,
	}
	if standalone, ok := client.(*redis.Client); ok {
		o := standalone.Options()
		values["REDIS_URL"], values["REDIS_PASSWORD_FILE"] = o.Addr, o.Password
		if o.CredentialsProviderContext != nil {
			_, password, err := o.CredentialsProviderContext(t.Context())
			testkit.Must(t, err)
			values["REDIS_PASSWORD_FILE"] = password
		}
		if o.TLSConfig != nil {
			values["REDIS_CA_FILE"], values["REDIS_TLS_SERVER_NAME"] = o.TLSConfig.RootCAs != nil, o.TLSConfig.ServerName
			values["REDIS_CERT_FILE"] = o.TLSConfig.GetClientCertificate != nil
		}
	}
	return values
}

// Each variable has its default and sets its own field.
func TestLoad(t *testing.T) {
	const auth = "https://consent.example/start?sess_id="
	clients := writeFile(t, "clients.json", `{"clients": {"acme": {}}}`)
	password := writeFile(t, "password", "from file\n")
	ca := redistest.NewCA(t)
	roots, certAndKey := writeFile(t, "ca.pem", string(ca.PEM)), ca.Issue(t, "client", time.Now().Add(time.Hour))
	tests := []struct {
		name     string
		fallback string // the field if the variable is not set
		value    string
		want     string // the field if the variable has the value
	}{
		{name: "ADDR", fallback: ":8080", value: "127.0.0.1:1", want: "127.0.0.1:1"},
		{name: "AUTH_URL", fallback: auth, value: "https://c.example", want: "https://c.example?sess_id="},
		{name: "AUTH_URL", fallback: auth, value: "https://c.example/a?", want: "https://c.example/a?sess_id="},
		{name: "AUTH_URL", fallback: auth, value: "https://c.example/?b=%2C", want: "https://c.example/?b=%2C&sess_id="},
		{name: "REDIS_URL", fallback: "127.0.0.1:6379", value: "redis://h:1", want: "h:1"},
		{name: "REDIS_MODE", fallback: "*redis.Client", value: "cluster", want: "*redis.ClusterClient"},
		{name: "REDIS_PASSWORD_FILE", fallback: "p", value: password, want: "from file"},
		{name: "REDIS_CA_FILE", fallback: "false", value: roots, want: "true"},
		{name: "REDIS_CERT_FILE", fallback: "false", value: certAndKey, want: "true"},
		{name: "REDIS_TLS_SERVER_NAME", fallback: "127.0.0.1", value: "redis.test", want: "redis.test"},
		{name: "REDIS_WAIT_REPLICAS", fallback: "0", value: "2", want: "2"},
		{name: "KEY_PREFIX", fallback: "auth_session:", value: "{tag}:", want: "{tag}:"},
		{name: "SESSION_TTL", fallback: "30m0s", value: "2h45m", want: "2h45m0s"},
		{name: "SEAL_RECORDS", fallback: "false", value: "true", want: "true"},
		{name: "JWKS_URL", fallback: "https://login.example/jwks.json", value: "file:///j.json", want: "file:///j.json"},
		{name: "JWT_ISSUER", value: "https://i.example/", want: "https://i.example/"},
		{name: "JWT_AUDIENCE", value: "a", want: "a"},
		{name: "JWT_ALGORITHMS", fallback: "[RS256 PS256 ES256 EdDSA]", value: "ES384, RS512", want: "[ES384 RS512]"},
		{name: "JWT_ALGORITHMS", fallback: "[RS256 PS256 ES256 EdDSA]", value: "Ed25519,ES256", want: "[EdDSA ES256]"},
		{name: "JWT_SCOPE_CLAIM", fallback: "[scope scp]", value: "roles, scp", want: "[roles scp]"},
		{name: "JWT_CLIENT_CLAIM", fallback: "[client_id azp sub]", value: "org_id, x", want: "[org_id x]"},
		{name: "JWT_MAX_LIFETIME", fallback: "24h0m0s", value: "720h", want: "720h0m0s"},
		{name: "JWT_TYP", fallback: "false", value: "at+jwt", want: "true"},
		{name: "CLIENT_CERT_HEADER", value: "x-client-cert", want: "X-Client-Cert"},
		{name: "TRUSTED_PROXIES", fallback: "[]", value: "10.0.0.0/8, fd00::/8", want: "[10.0.0.0/8 fd00::/8]"},
		{name: "STORE_TIMEOUT", fallback: "1s", value: "50ms", want: "50ms"},
		{name: "MAX_IN_FLIGHT", fallback: "2048", value: "7", want: "7"},
		{name: "DRAIN_DELAY", fallback: "0s", value: "3s", want: "3s"},
		{name: "SHUTDOWN_GRACE", fallback: "10s", value: "5m", want: "5m0s"},
		{name: "METRICS_ADDR", value: ":9090", want: ":9090"},
		{name: "LOG_LEVEL", fallback: "INFO", value: "warn", want: "WARN"},
		{name: "CLIENTS_FILE", fallback: "false", value: clients, want: "true"}, // whether another client is refused
	}
	unset, err := load(nil)
	testkit.Must(t, err)
	tested := map[string]bool{"REDIS_KEY_FILE": true} // with REDIS_CERT_FILE
	for _, test := range tests {
		tested[test.name] = true
		if got := fmt.Sprint(fields(t, unset)[test.name]); got != test.fallback {
			t.Errorf("without %s the field is %s, want %s", test.name, got, test.fallback)
		}
		env := map[string]string{test.name: test.value}
		if test.name == "REDIS_CERT_FILE" {
			env["REDIS_KEY_FILE"] = certAndKey
		}
		c, err := load(env)
		testkit.Must(t, err)
		if got := fmt.Sprint(fields(t, c)[test.name]); got != test.want {
			t.Errorf("with %s=%s the field is %s, want %s", test.name, test.value, got, test.want)
		}
	}
	for name := range printed(t) {
		if !tested[name] {
			t.Errorf("%s is not tested", name)
		}
	}
}

func TestLoadRejects(t *testing.T) {
	password, empty := writeFile(t, "password", "pw\n"), writeFile(t, "empty", "")
	clients := writeFile(t, "clients.json", `{"clients": {"acme": {"session_ttl": "1m"}}}`)
	ca := redistest.NewCA(t)
	roots, certAndKey := writeFile(t, "ca.pem", string(ca.PEM)), ca.Issue(t, "client", time.Now().Add(time.Hour))
	tests := []struct {
		name      string
		env       map[string]string // other variables
		valid     []string
		invalid   []string
		wantError string // how the error begins after the name and value; "" stands for "must be "
		secret    bool   // no value is quoted; those with @ or ? are in no case
	}{
		{name: "ADDR", valid: []string{"", ":0", "127.0.0.1:65535", "[::1]:80", "localhost:1"},
			invalid: []string{"8080", "127.0.0.1", ":65536", ":http", "a:b:c"}},
		{name: "AUTH_URL", valid: []string{"https://c.example", "https://c.example/a?b=c&d", "http://localhost/x",
			"http://127.0.0.2:1/x", "http://[::1]/"}, invalid: []string{"c.example", "/start", "http://c.example/",
			"ftp://c.example/", "https://", "https:///x", "https://c.example/%zz", "https://c.example/a b",
			"https://c.example:65536/", "https://c.example/ä", "https://u:s3cret@c.example/", "https://c.example/#f",
			"https://c.example/#", "https://c.example/?sess_id=1"}},
		{name: "AUTH_URL", invalid: []string{""}, wantError: "is required: the consent page's URL"},
		{name: "REDIS_URL", valid: []string{"redis://h", "redis://u:p@h:1/2", "rediss://h", "unix:///run/redis.sock",
			"redis://h?pool_size=5"}, invalid: []string{"h:6379", "http://h", "redis://h/x", "redis://u:s3cret@h:x",
			"redis://u:s3cret@h?nope=1", "redis://u:s3cret@%zz", "redis://u:x/s3cret@h", "redis://u:x?s3cret@h",
			"redis://h?pool_size=-1", "redis://:57#s3cret@h", "redis://:57/s3cret@h", "redis://:57%s3cret@h"}, secret: true,
			wantError: "must be in go-redis's format for standalone mode: "},
		{name: "REDIS_URL", invalid: []string{""}, wantError: "is required: redis://"},
		{name: "REDIS_URL", env: map[string]string{"REDIS_MODE": "sentinel"},
			valid:   []string{"redis://s1:26379?master_name=m&addr=s2:26379", "rediss://u:p@s1:26379?master_name=m"},
			invalid: []string{"redis://s1:26379"}, secret: true},
		{name: "REDIS_MODE", valid: []string{"standalone", "cluster"}, invalid: []string{"single", "Cluster"}},
		{name: "REDIS_MODE", env: map[string]string{"REDIS_URL": "redis://s1?master_name=m"}, invalid: []string{"Sentinel"}},
		{name: "REDIS_PASSWORD_FILE", valid: []string{"", password},
			invalid:   []string{"/nonexistent", empty, writeFile(t, "crlf", "pw\r\n"), writeFile(t, "bom", "\ufeffpw")},
			wantError: "must name a valid password file: ", secret: true},
		{name: "REDIS_PASSWORD_FILE", invalid: []string{"s3cret"}, secret: true,
			wantError: "must name a valid password file: reading the password file: no such file or directory"},
		{name: "REDIS_CA_FILE", valid: []string{"", roots}, invalid: []string{"/nonexistent", empty, password}},
		{name: "REDIS_CERT_FILE", env: map[string]string{"REDIS_KEY_FILE": certAndKey}, valid: []string{certAndKey},
			invalid: []string{"", "/nonexistent", roots}, secret: true,
			wantError: "and REDIS_KEY_FILE must name readable PEM files"},
		{name: "REDIS_CERT_FILE", valid: []string{""}, invalid: []string{certAndKey}, wantError: "and REDIS_KEY_FILE",
			secret: true},
		{name: "REDIS_WAIT_REPLICAS", valid: []string{"", "0", "100"}, invalid: []string{"-1", "101", "x"}},
		{name: "SESSION_TTL", valid: []string{"", "1m", "168h", "90s"}, invalid: []string{"59s", "168h1s", "30", "-1h", "1d"},
			wantError: "must be a duration from 1m to 168h, such as 30m: the lifetime of a session"},
		{name: "SEAL_RECORDS", valid: []string{"", "true", "false"}, invalid: []string{"1", "TRUE", "yes"}},
		{name: "JWKS_URL", valid: []string{"https://h/x", "http://localhost:1/x", "http://127.0.0.1/x", "http://[::1]/x",
			"file:///etc/jwks.json"}, invalid: []string{"http://h/x", "jwks.json", "file://jwks.json", "file:jwks.json",
			"ftp://h/x", "https://", "https://u:5#p@h/x", "https://u:5/p@h/x"}},
		{name: "JWKS_URL", invalid: []string{""}, wantError: "is required: the key set's URL"},
		{name: "JWT_ALGORITHMS", valid: []string{"RS256", "PS256,PS384,PS512,ES256,ES384,ES512,EdDSA", "EdDSA,Ed25519"},
			invalid: []string{"HS256", "none", "RS256,none", "rs256", "A", "RS256,,ES256", "ed25519", "Ed448"}},
		{name: "JWT_CLIENT_CLAIM", valid: []string{"", "org_id", "a, b", "a ,  b"}, invalid: []string{",", "a,"}},
		{name: "JWT_SCOPE_CLAIM", valid: []string{"", "roles", "a, b"}, invalid: []string{",", "a,"}},
		{name: "JWT_MAX_LIFETIME", valid: []string{"1s", "87600h"}, invalid: []string{"0s", "-1h", "87601h", "x"}},
		{name: "JWT_TYP", valid: []string{"", "at+jwt"}, invalid: []string{"JWT", "AT+JWT", "application/at+jwt"}},
		{name: "CLIENT_CERT_HEADER", valid: []string{"", "Client-Cert", "x1"},
			invalid: []string{"a_b", "a b", "a:", "é", "a,b"}},
		{name: "TRUSTED_PROXIES", valid: []string{"", "10.1.2.3/8", "::/0", "192.0.2.1/32,2001:db8::/32"},
			invalid: []string{"10.0.0.1", "10.0.0.0/33", "::ffff:10.0.0.0/104", "fe80::%eth0/64", "proxy"}},
		{name: "STORE_TIMEOUT", valid: []string{"1ms", "1m"}, invalid: []string{"0", "2m", "x"}},
		{name: "STORE_TIMEOUT", env: map[string]string{"SESSION_TTL": "1m"}, valid: []string{"30s"},
			invalid: []string{"30001ms"}, wantError: "must be at most half of SESSION_TTL"},
		{name: "MAX_IN_FLIGHT", valid: []string{"", "1", "1000000"}, invalid: []string{"0", "-1", "1000001", "many", "1.5"}},
		{name: "DRAIN_DELAY", valid: []string{"0s", "1h"}, invalid: []string{"-1s", "61m", "x"}},
		{name: "SHUTDOWN_GRACE", valid: []string{"0s", "1h"}, invalid: []string{"-1s", "61m"}},
		{name: "METRICS_ADDR", valid: []string{"", ":9090", "127.0.0.1:0"}, invalid: []string{"9090", ":65536"}},
		{name: "METRICS_ADDR", invalid: []string{":8080"}, wantError: "must not be ADDR"},
		{name: "METRICS_ADDR", env: map[string]string{"ADDR": ":0"}, valid: []string{":0", ":8080"}},
		{name: "LOG_LEVEL", valid: []string{"", "debug", "error"}, invalid: []string{"INFO", "trace", "info+2"}},
		{name: "CLIENTS_FILE", valid: []string{"", clients}, invalid: []string{"/nonexistent", empty, roots, "/"},
			wantError: "must name a valid clients file: "},
		{name: "CLIENTS_FILE", env: map[string]string{"STORE_TIMEOUT": "31s"}, invalid: []string{clients},
			wantError: "must name a valid clients file: "},
	}
	for _, test := range tests {
		for _, value := range slices.Concat(test.valid, test.invalid) {
			env := map[string]string{test.name: value}
			maps.Copy(env, test.env)
			_, err := load(env)
			want := test.name
			if value != "" && !test.secret && !strings.ContainsAny(value, "@?") {
				want += fmt.Sprintf("=%+.64q", value)
			}
			want += " " + cmp.Or(test.wantError, "must be ")
			switch {
			case slices.Contains(test.valid, value):
				if err != nil {
					t.Errorf("Load with %s=%q = %v, want no error", test.name, value, err)
				}
			case err == nil || !strings.HasPrefix(err.Error(), want):
				t.Errorf("Load with %s=%q = %v, want %s", test.name, value, err, want)
			case strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "s3cret"):
				t.Errorf("Load with %s=%q = %v, want one problem and no password", test.name, value, err)
			}
		}
	}
}

// White space around a value, and control and format characters in it, are wrong for each variable.
func TestLoadWhiteSpace(t *testing.T) {
	for name := range printed(t) {
		for _, value := range []string{"x\n", "x\r\n", " x", "x\u00a0", " ", "\n", "x\ty", "x\x00", "x\u0085y", "\ufeffx"} {
			_, err := load(map[string]string{name: value})
			rule := regexp.MustCompile(`(?m)^` + name + `(=".*")? must not have white space around it, or control`)
			if err == nil || !rule.MatchString(err.Error()) {
				t.Errorf("Load with %s=%q = %v, want that it must not have it", name, value, err)
			}
		}
	}
	for _, name := range []string{"KEY_PREFIX", "JWT_ISSUER", "JWT_AUDIENCE"} {
		_, err := load(map[string]string{name: "a b é"})
		testkit.Must(t, err)
	}
}

// One message has a line for each invalid variable, and quotes its value where that is no secret.
func TestLoadAllInvalid(t *testing.T) {
	// Any text is valid, or the message of REDIS_CERT_FILE names the variable, too.
	free := []string{"KEY_PREFIX", "JWT_ISSUER", "JWT_AUDIENCE", "REDIS_TLS_SERVER_NAME", "REDIS_KEY_FILE"}
	secrets := []string{"REDIS_URL", "REDIS_PASSWORD_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"}
	names := printed(t)
	long := strings.Repeat("x", 100)
	_, err := config.Load(func(name string) string {
		switch {
		case slices.Contains(secrets, name):
			return ", s3cret"
		case name == "JWKS_URL":
			return "http://s3cret@h/x"
		case name == "AUTH_URL":
			return ""
		case name == "CLIENTS_FILE":
			return ", " + long[:62] // the cause names the file
		}
		return ", " + long
	})
	if err == nil || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), long[:63]) {
		t.Fatalf("Load of invalid variables = %v, want an error that quotes no secret and no long value", err)
	}
	for name := range names {
		want := fmt.Sprintf("\n%s=%q must ", name, ", "+long[:62])
		if slices.Contains(secrets, name) || strings.HasSuffix(name, "_URL") {
			want = "\n" + name + " "
		}
		wantLines := 1
		if slices.Contains(free, name) {
			wantLines = 0
		}
		if got := strings.Count("\n"+err.Error(), want); got != wantLines {
			t.Errorf("%d lines begin with %q, want %d: %v", got, want, wantLines, err)
		}
	}
}

// Settings has every variable in the order of the help, and no secret.
func TestLoadSettings(t *testing.T) {
	clients := writeFile(t, "clients.json", `{"clients": {}}`)
	c, err := load(map[string]string{"REDIS_URL": "rediss://u:s3cret@h:1/2?client_name=s3cret", "CLIENTS_FILE": clients,
		"JWKS_URL": "https://s3cret@h/k?s3cret", "AUTH_URL": "https://h/a?s3cret", "JWT_ISSUER": "i"})
	testkit.Must(t, err)
	var help strings.Builder
	config.PrintVariables(&help)
	values := map[string]string{"REDIS_URL": "rediss://h:1/2", "JWKS_URL": "https://h/k", "AUTH_URL": "https://h/a",
		"CLIENTS_FILE": clients, "JWT_ISSUER": "i"}
	names := regexp.MustCompile(`(?m)^  (\w+)`).FindAllStringSubmatch(help.String(), -1)
	if len(names) != len(c.Settings) {
		t.Fatalf("%d settings of %d variables", len(c.Settings), len(names))
	}
	fallbacks := printed(t)
	for i, name := range names {
		if want := name[1] + "=" + cmp.Or(values[name[1]], fallbacks[name[1]]); c.Settings[i].String() != want {
			t.Errorf("setting %d = %s, want %s", i, c.Settings[i], want)
		}
	}
	c, err = load(map[string]string{"REDIS_URL": "unix://u:s3cret@/run/redis.sock"})
	testkit.Must(t, err)
	if got := fmt.Sprint(c.Settings); !strings.Contains(got, " REDIS_URL=unix:///run/redis.sock ") {
		t.Errorf("settings = %s, want the socket's path alone", got)
	}
}

// printed returns the default of each variable in the help, "required" for a required one.
func printed(t *testing.T) map[string]string {
	t.Helper()
	var help strings.Builder
	config.PrintVariables(&help)
	variables := map[string]string{}
	entry := regexp.MustCompile(`(?m)^  (\w+)(?: \((?:default )?(\S+)\))?\n    \t.{5,}\n`)
	for _, match := range entry.FindAllStringSubmatch(help.String(), -1) {
		variables[match[1]] = match[2]
	}
	if n := strings.Count(help.String(), "\n"); len(variables) < 28 || n != 2*len(variables) {
		t.Fatalf("%d variables in %d lines of help", len(variables), n)
	}
	return variables
}

// The README's table has the same variables and defaults as the help.
func TestPrintVariables(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	testkit.Must(t, err)
	_, table, _ := strings.Cut(string(readme), "| variable | default |")
	table, _, _ = strings.Cut(table, "\n\n")
	documented := map[string]string{}
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		names, fallbacks := strings.Split(cells[1], ","), strings.Split(cells[2], "`, `")
		for i, name := range names {
			fallback := strings.Trim(fallbacks[min(i, len(fallbacks)-1)], " `")
			documented[strings.Trim(name, " `")] = strings.TrimSuffix(fallback, "off")
		}
	}
	if help := printed(t); !maps.Equal(help, documented) {
		t.Errorf("the help has %v, the README %v", help, documented)
	}
}

// The settings in docs/identity-providers.md are valid and complete.
func TestLoadIdentityProviders(t *testing.T) {
	text, err := os.ReadFile("../../docs/identity-providers.md")
	testkit.Must(t, err)
	parts := strings.Split(string(text), "\n```\n") // text and settings by turns
	if len(parts) != 9 {
		t.Fatalf("%d groups of settings, want 4", len(parts)/2)
	}
	for i := 1; i < len(parts); i += 2 {
		env := map[string]string{}
		for _, setting := range regexp.MustCompile(`(?m)^(\w+)=(.*?)( +#.*)?$`).FindAllStringSubmatch(parts[i], -1) {
			env[setting[1]] = strings.NewReplacer("<", "", ">", "", " ", "").Replace(setting[2])
		}
		c, err := load(env)
		testkit.Must(t, err)
		delete(env, "JWT_SCOPE_CLAIM") // only one provider needs it
		if len(env) != 4 || !strings.HasPrefix(c.Tokens.Issuer, "https://"+c.Tokens.JWKSURL.Host) {
			t.Errorf("%v: want JWKS_URL and JWT_ISSUER on one host, JWT_AUDIENCE and JWT_CLIENT_CLAIM", env)
		}
	}
}
