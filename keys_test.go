package main

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// command runs authsession with args and nothing in the environment.
func command(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	err = run(t.Context(), args, func(string) string { return "" }, &out, &log)
	return out.String(), log.String(), err
}

// mustPrint is what the command prints, which must be one line and nothing on stderr.
func mustPrint(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, err := command(t, args...)
	line, rest, ended := strings.Cut(stdout, "\n")
	if err != nil || !ended || line == "" || rest != "" || stderr != "" {
		t.Fatalf("authsession %q prints %q and %q, %v, want one line on stdout", args, stdout, stderr, err)
	}
	return line
}

// newKeygenServer is a server whose key set is what keygen prints for these flags. key is
// the private key's file.
func newKeygenServer(t testing.TB, env map[string]string, flags ...string) (ts *testServer, key string) {
	t.Helper()
	dir := t.TempDir()
	key = filepath.Join(dir, "key.pem")
	set := mustPrint(t, append([]string{"keygen", "-out", key}, flags...)...)
	must(t, os.WriteFile(filepath.Join(dir, "jwks.json"), []byte(set+"\n"), 0o644))
	all := map[string]string{"JWKS_URL": "file://" + filepath.Join(dir, "jwks.json")}
	for name, value := range env {
		all[name] = value
	}
	ts = newTestServer(t, all)
	waitFor(t, 5*time.Second, "the key set", ts.verifier.keys.loaded)
	return ts, key
}

func TestKeysServe(t *testing.T) {
	for _, alg := range append(knownAlgorithms, "") {
		t.Run(cmp.Or(string(alg), "default"), func(t *testing.T) {
			flags := []string{"-alg", string(alg)}
			env := map[string]string{"JWT_ALGORITHMS": string(alg)}
			if alg == "" { // the defaults of keygen, token and the service fit each other
				flags, env = nil, nil
			}
			ts, key := newKeygenServer(t, env, flags...)
			args := []string{"token", "-key", key, "-client", "acme", "-ttl", "10m"}
			if kind := alg[:min(2, len(alg))]; kind == "PS" || kind == "RS" && alg != "RS256" {
				args = append(args, flags...)
			}
			record := ts.wantSession(t, ts.post(t, mustPrint(t, args...), goodBody))
			if record.ClientID != "acme" {
				t.Errorf("client_id = %q, want acme", record.ClientID)
			}
		})
	}
}

func TestKeygenFile(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	printed := mustPrint(t, "keygen", "-out", key)
	info, err := os.Stat(key)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("the key's file: %v, %v, want mode 0600", info.Mode(), err)
	}
	written, err := os.ReadFile(key)
	must(t, err)
	block, rest := pem.Decode(written)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Fatalf("the key's file is not one PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		t.Fatalf("the key is a %T, want one for ES256", parsed)
	}
	point, err := private.PublicKey.Bytes() // 4, x, y
	must(t, err)
	x, y := base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y)) // RFC 7638
	var got, want any
	must(t, json.Unmarshal([]byte(printed), &got))
	must(t, json.Unmarshal(fmt.Appendf(nil, `{"keys":[{"alg":"ES256","crv":"P-256","kid":"%s","kty":"EC","use":"sig","x":"%s","y":"%s"}]}`,
		base64.RawURLEncoding.EncodeToString(thumbprint[:]), x, y), &want))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("keygen prints %v, want %v", got, want)
	}
	if mustPrint(t, "keygen", "-out", key+"2") == printed {
		t.Error("keygen made the same key twice")
	}

	stdout, _, err := command(t, "keygen", "-out", key)
	if err == nil || !strings.Contains(err.Error(), "-out must be a new file") || stdout != "" {
		t.Errorf("keygen over a key prints %q, %v, want a refusal that names -out", stdout, err)
	}
	if now, err := os.ReadFile(key); err != nil || !bytes.Equal(now, written) {
		t.Errorf("the refused keygen changed the file: %v", err)
	}
	link := key + ".link"
	must(t, os.Symlink(key+".nowhere", link))
	if _, _, err := command(t, "keygen", "-out", link); err == nil {
		t.Error("keygen wrote through a symbolic link")
	}
}

func TestKeygenPrintsNothingPrivate(t *testing.T) {
	members := map[string][]string{
		"RSA": {"alg", "e", "kid", "kty", "n", "use"},
		"EC":  {"alg", "crv", "kid", "kty", "use", "x", "y"},
		"OKP": {"alg", "crv", "kid", "kty", "use", "x"},
	}
	for _, alg := range []string{"PS256", "ES512", "EdDSA"} {
		var set struct {
			Keys []map[string]string `json:"keys"`
		}
		must(t, json.Unmarshal([]byte(mustPrint(t, "keygen", "-alg", alg, "-out", filepath.Join(t.TempDir(), "key.pem"))), &set))
		if len(set.Keys) != 1 || set.Keys[0]["alg"] != alg || set.Keys[0]["use"] != "sig" {
			t.Fatalf("%s: keygen prints %v, want one key with alg and use", alg, set.Keys)
		}
		var names []string
		for name := range set.Keys[0] {
			names = append(names, name)
		}
		slices.Sort(names)
		if want := members[set.Keys[0]["kty"]]; !slices.Equal(names, want) {
			t.Errorf("%s: the key has members %q, want %q", alg, names, want)
		}
	}
}

// A key whose set could not be printed is taken back.
func TestKeygenCannotPrint(t *testing.T) {
	reader, closedPipe, err := os.Pipe()
	must(t, err)
	defer closedPipe.Close()
	must(t, reader.Close())
	readOnly, err := os.Open(os.DevNull)
	must(t, err)
	defer readOnly.Close()
	for name, stdout := range map[string]*os.File{"a closed pipe": closedPipe, "a file open for reading": readOnly} {
		key := filepath.Join(t.TempDir(), "key.pem")
		cmd := exec.Command(binary(t), "keygen", "-out", key)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = stdout, &stderr
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "writing key and key set") {
			t.Errorf("stdout is %s: exit status %d, %s, want 1 and the cause", name, code, stderr.String())
		}
		if _, err := os.Lstat(key); !os.IsNotExist(err) {
			t.Errorf("stdout is %s: the key's file is still there (%v)", name, err)
		}
	}
}

func TestTokenFlags(t *testing.T) {
	ts, key := newKeygenServer(t, map[string]string{"JWT_ISSUER": "https://i.example", "JWT_AUDIENCE": "https://a.example", "JWT_MAX_LIFETIME": "48h"}, "-alg", "EdDSA")
	for _, test := range []struct {
		flags  []string
		status int
	}{
		{[]string{"-issuer", "https://i.example", "-audience", "https://a.example"}, 200},
		{[]string{"-issuer", "https://i.example", "-audience", "https://a.example", "-scope", "openid api:user.write"}, 200},
		{[]string{"-issuer", "https://i.example", "-audience", "https://a.example", "-alg", "EdDSA", "-ttl", "24h"}, 200},
		{[]string{"-issuer", "https://i.example", "-audience", "https://a.example", "-scope", "openid"}, 403},
		{[]string{"-issuer", "https://i.example", "-audience", "https://a.example", "-scope", ""}, 403},
		{[]string{"-issuer", "https://other.example", "-audience", "https://a.example"}, 401},
		{[]string{"-issuer", "https://i.example", "-audience", "https://other.example"}, 401},
		{[]string{"-issuer", "https://i.example"}, 401},
		{nil, 401},
	} {
		token := mustPrint(t, append([]string{"token", "-key", key, "-client", "acme"}, test.flags...)...)
		if a := ts.post(t, token, goodBody); a.status != test.status {
			t.Errorf("POST /auth/session with a token by %q = %d %s, want %d", test.flags, a.status, a.body, test.status)
		}
	}

	token, warning, err := command(t, "token", "-key", key, "-client", "acme", "-ttl", "47h", "-issuer", "https://i.example", "-audience", "https://a.example")
	if err != nil || !strings.Contains(warning, "JWT_MAX_LIFETIME") {
		t.Errorf("token -ttl 47h says %q, %v, want a warning about JWT_MAX_LIFETIME", warning, err)
	}
	if a := ts.post(t, strings.TrimSuffix(token, "\n"), goodBody); a.status != 200 {
		t.Errorf("POST /auth/session with a token for 47h = %d %s, want 200", a.status, a.body)
	}
}

func TestTokenClaims(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	mustPrint(t, "keygen", "-out", key)
	claims := func() map[string]any {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(mustPrint(t, "token", "-key", key, "-client", "acme"), ".")[1])
		must(t, err)
		var claims map[string]any
		must(t, json.Unmarshal(payload, &claims))
		return claims
	}
	before := time.Now().Unix()
	got, other := claims(), claims()
	iat, _ := got["iat"].(float64)
	jti, _ := got["jti"].(string)
	if int64(iat) < before || int64(iat) > time.Now().Unix() || len(jti) < 22 || jti == other["jti"] {
		t.Errorf("claims %v, want iat of now and a jti of its own", got)
	}
	want := map[string]any{"client_id": "acme", "scope": "api:user.write", "iat": iat, "exp": iat + 3600, "jti": jti}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("claims %v, want %v", got, want)
	}
}

func TestKeysWrongFlags(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeKey := func(name, kind string, der []byte, err error) {
		must(t, err)
		must(t, os.WriteFile(at(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	mustPrint(t, "keygen", "-out", at("ec.pem"))
	mustPrint(t, "keygen", "-out", at("rsa.pem"), "-alg", "PS256")
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(p224)
	writeKey("p224.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(&p224.PublicKey)
	writeKey("public.pem", "PUBLIC KEY", der, err)
	der, err = x509.MarshalECPrivateKey(p224)
	writeKey("sec1.pem", "EC PRIVATE KEY", der, err)
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(t, err)
	der, err = x509.MarshalPKCS8PrivateKey(x25519)
	writeKey("x25519.pem", "PRIVATE KEY", der, err)
	must(t, os.WriteFile(at("text.pem"), []byte("no key\n"), 0o600))

	good := []string{"token", "-key", at("ec.pem"), "-client", "acme"}
	for _, test := range []struct {
		args  []string
		wants string
	}{
		{[]string{"keygen"}, "-out is required"},
		{[]string{"keygen", "-out", ""}, "-out is required"},
		{[]string{"keygen", "-out"}, "-out"},
		{[]string{"keygen", "-out", at("no/such/dir")}, "-out must be a new file"},
		{[]string{"keygen", "-out", dir}, "-out must be a new file"},
		{[]string{"keygen", "-out", at("new.pem"), "-alg", "HS256"}, "-alg must be one of [RS256 "},
		{[]string{"keygen", "-out", at("new.pem"), "-alg", "none"}, "-alg must be one of"},
		{[]string{"keygen", "-out", at("new.pem"), "-alg", ""}, "-alg must be one of"},
		{[]string{"keygen", "-out", at("new.pem"), "-bits", "1024"}, "-bits"},
		{[]string{"keygen", "-out", at("new.pem"), "now"}, `keygen takes flags only, and not "now"`},
		{[]string{"keygen", at("new.pem")}, "keygen takes flags only"},
		{[]string{"token"}, "-key is required"},
		{[]string{"token", "-client", "acme"}, "-key is required"},
		{[]string{"token", "-key", at("ec.pem")}, "-client is required"},
		{[]string{"token", "-key", at("none.pem"), "-client", "acme"}, "-key"},
		{[]string{"token", "-key", dir, "-client", "acme"}, "-key"},
		{[]string{"token", "-key", at("text.pem"), "-client", "acme"}, "-key must hold a private key in PKCS#8 PEM"},
		{[]string{"token", "-key", at("public.pem"), "-client", "acme"}, "-key must hold a private key in PKCS#8 PEM"},
		{[]string{"token", "-key", at("sec1.pem"), "-client", "acme"}, "-key must hold a private key in PKCS#8 PEM"},
		{[]string{"token", "-key", at("x25519.pem"), "-client", "acme"}, "-key must hold a private key in PKCS#8 PEM"},
		{[]string{"token", "-key", at("p224.pem"), "-client", "acme"}, "-key must be an RSA key of 2048 bits or more"},
		{[]string{"token", "-key", at("rsa.pem"), "-client", "acme", "-alg", "ES256"}, "-alg must be one of [RS256 RS384 RS512 PS256 PS384 PS512]"},
		{append(good, "-alg", "RS256"), "-alg must be one of [ES256]"},
		{append(good, "-alg", "none"), "-alg must be one of [ES256]"},
		{append(good, "-ttl", "0"), "-ttl must be from 1s to 8760h"},
		{append(good, "-ttl", "-1h"), "-ttl must be"},
		{append(good, "-ttl", "999ms"), "-ttl must be"},
		{append(good, "-ttl", "8760h1s"), "-ttl must be"},
		{append(good, "-ttl", "3600"), "-ttl"},
		{append(good, "-issuer"), "-issuer"},
		{append(good, "globex"), `token takes flags only, and not "globex"`},
	} {
		stdout, _, err := command(t, test.args...)
		if err == nil || !strings.Contains(err.Error(), test.wants) || stdout != "" {
			t.Errorf("authsession %q prints %q, %v, want only an error with %q", test.args, stdout, err, test.wants)
		}
	}
	if _, err := os.Lstat(at("new.pem")); !os.IsNotExist(err) {
		t.Errorf("a refused keygen left its file (%v)", err)
	}
}
