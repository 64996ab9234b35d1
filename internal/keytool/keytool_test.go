package keytool_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// command is Keygen, JWKS or Token.
type command func(args []string, stdout, stderr io.Writer) error

// mustPrint returns the output of a command, which must be one line on stdout and nothing on stderr.
func mustPrint(t testing.TB, run command, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	err := run(args, &stdout, &stderr)
	line, rest, ended := strings.Cut(stdout.String(), "\n")
	if err != nil || !ended || line == "" || rest != "" || stderr.Len() > 0 {
		t.Fatalf("%q prints %q and %q, %v, want one line on stdout", args, &stdout, &stderr, err)
	}
	return line
}

// fullDisk fails each Write with errFull.
type fullDisk struct{}

var errFull = errors.New("no space left")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

// writePEM writes PEM blocks to a new file.
func writePEM(t testing.TB, blocks ...*pem.Block) (file string) {
	t.Helper()
	var text bytes.Buffer
	for _, block := range blocks {
		testkit.Must(t, pem.Encode(&text, block))
	}
	file = filepath.Join(t.TempDir(), "key.pem")
	testkit.Must(t, os.WriteFile(file, text.Bytes(), 0o600))
	return file
}

// der returns the result of one of crypto/x509's Marshal functions as a PEM block.
func der(t testing.TB, kind string) func(data []byte, err error) *pem.Block {
	return func(data []byte, err error) *pem.Block {
		t.Helper()
		testkit.Must(t, err)
		return &pem.Block{Type: kind, Bytes: data}
	}
}

// newVerifier returns a running Verifier that has loaded the key set in file.
func newVerifier(t testing.TB, file string, c bearer.Config) *bearer.Verifier {
	t.Helper()
	c.JWKSURL, c.ClientClaims = &url.URL{Scheme: "file", Path: file}, []string{"client_id"}
	c.ScopeClaims = []string{"scope"}
	v := bearer.New(c, slog.New(slog.DiscardHandler))
	var running sync.WaitGroup
	running.Go(func() { v.Run(t.Context()) }) // t.Context ends before Cleanup
	t.Cleanup(running.Wait)
	testkit.WaitFor(t, 10*time.Second, "the key set", v.Ready)
	return v
}

// decode returns the header (part 0) or the claims (part 1) of a token.
func decode(t testing.TB, token string, part int) (members map[string]any) {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[part])
	testkit.Must(t, err)
	testkit.Must(t, json.Unmarshal(data, &members))
	return members
}

func TestKeygen(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.PS256, jose.ES512, jose.EdDSA} {
		key, set := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "jwks.json")
		printed := mustPrint(t, keytool.Keygen, "-alg", string(alg), "-out", key, "-jwks", set)
		if written, err := os.ReadFile(set); err != nil || string(written) != printed+"\n" {
			t.Errorf("-jwks writes %q, %v, want %q", written, err, printed)
		}
		data, err := os.ReadFile(key)
		testkit.Must(t, err)
		block, rest := pem.Decode(data)
		if info, err := os.Stat(key); err != nil || info.Mode() != 0o600 && runtime.GOOS != "windows" ||
			block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
			t.Fatalf("-alg %s writes no PEM block of type PRIVATE KEY with mode 0600", alg)
		}
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		testkit.Must(t, err)
		public := jose.JSONWebKey{Key: private.(crypto.Signer).Public(), Algorithm: string(alg), Use: "sig"}
		thumbprint, err := public.Thumbprint(crypto.SHA256)
		testkit.Must(t, err)
		public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
		want, err := public.MarshalJSON()
		testkit.Must(t, err)
		if printed != `{"keys":[`+string(want)+`]}` {
			t.Errorf("-alg %s prints %s, want the key %s", alg, printed, want)
		}
	}
}

// Keygen overwrites no file. If it cannot write a file, it prints nothing and leaves no file.
func TestKeygenFails(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	old := mustPrint(t, keytool.Keygen, "-out", at("old.pem"), "-jwks", at("old.json"))
	testkit.Must(t, os.Symlink(at("nowhere.pem"), at("link.pem")))
	files := func() []string {
		names, err := filepath.Glob(at("*"))
		testkit.Must(t, err)
		return names
	}
	before := files()
	for _, tt := range []struct {
		name string
		args []string
		want string // in the error's message
	}{
		{name: "no flags", want: "-out is required"},
		{name: "directory", args: []string{"-out", dir}, want: "-out must be a new file"},
		{name: "old key", args: []string{"-out", at("old.pem")}, want: "-out must be a new file"},
		{name: "symbolic link", args: []string{"-out", at("link.pem")}, want: "-out must be a new file"},
		{name: "old key set", args: []string{"-out", at("new.pem"), "-jwks", at("old.json")}, want: "-jwks must be a new"},
		{name: "HS256", args: []string{"-out", at("new.pem"), "-alg", "HS256"}, want: "-alg must be one of [RS256 "},
		{name: "unknown flag", args: []string{"-out", at("new.pem"), "-bits", "1024"}, want: "-bits"},
		{name: "argument", args: []string{"-out", at("new.pem"), "now"}, want: `keygen takes flags only, and not "now"`},
	} {
		var stdout bytes.Buffer
		err := keytool.Keygen(tt.args, &stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%s: Keygen prints %q, %v, want only an error with %q", tt.name, &stdout, err, tt.want)
		}
	}
	if after := files(); !slices.Equal(after, before) || mustPrint(t, keytool.JWKS, at("old.pem")) != old {
		t.Errorf("files %q, want %q with the old key", after, before)
	}
	if err := keytool.Keygen([]string{"-out", at("new.pem")}, fullDisk{}, io.Discard); !errors.Is(err, errFull) {
		t.Errorf("Keygen with a full disk = %v, want %v", err, errFull)
	}
}

func TestJWKS(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	testkit.Must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	testkit.Must(t, err)
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	testkit.Must(t, err)
	made := filepath.Join(t.TempDir(), "made.pem")
	printed := mustPrint(t, keytool.Keygen, "-out", made)
	rsaPrivate := writePEM(t, der(t, "RSA PRIVATE KEY")(x509.MarshalPKCS1PrivateKey(rsaKey), nil))
	rsaPublic := writePEM(t, der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)))
	ecPrivate := writePEM(t, &pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}},
		der(t, "EC PRIVATE KEY")(x509.MarshalECPrivateKey(ecKey)))
	smallPublic := writePEM(t, der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&small.PublicKey)))
	broken := writePEM(t, &pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}})

	if again := mustPrint(t, keytool.JWKS, made); again != printed {
		t.Errorf("JWKS prints %s, want what Keygen printed: %s", again, printed)
	}
	if mustPrint(t, keytool.JWKS, rsaPrivate) != mustPrint(t, keytool.JWKS, rsaPublic) {
		t.Error("JWKS prints different key sets for a private key and its public key")
	}
	var set struct{ Keys []map[string]string }
	printed = mustPrint(t, keytool.JWKS, rsaPrivate, ecPrivate, made)
	testkit.Must(t, json.Unmarshal([]byte(printed), &set))
	for i, alg := range []string{"", "ES384", "ES256"} {
		k := set.Keys[i]
		if len(set.Keys) != 3 || k["alg"] != alg || k["use"] != "sig" || k["kid"] == "" || k["d"] != "" || k["p"] != "" {
			t.Errorf("JWKS prints %s, want 3 public keys, key %d for %q", printed, i, alg)
		}
	}

	for _, tt := range []struct {
		name  string
		files []string
		want  string // in the error's message
	}{
		{name: "no file", want: "needs the files of keys"},
		{name: "no such file", files: []string{made, made + ".none"}, want: "cannot be read"},
		{name: "no PEM", files: []string{made, "keytool_test.go"}, want: "must hold a key in PEM"},
		{name: "P-224", files: []string{smallPublic}, want: "P-256, P-384 or P-521"},
		{name: "broken key", files: []string{made, broken}, want: broken + " must hold"},
		{name: "same key twice", files: []string{rsaPrivate, rsaPublic}, want: "a key that another file has"},
		{name: "flag", files: []string{"-nope"}, want: "flag provided but not defined:"},
	} {
		var stdout bytes.Buffer
		err := keytool.JWKS(tt.files, &stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%s: JWKS prints %q, %v, want only an error with %q", tt.name, &stdout, err, tt.want)
		}
	}
}

func TestToken(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	mustPrint(t, keytool.Keygen, "-out", key)
	for _, tt := range []struct {
		name  string
		flags []string
		ttl   float64        // seconds
		want  map[string]any // claims without iat, exp and jti
	}{
		{name: "default", ttl: 3600, want: map[string]any{"client_id": "acme", "scope": "api:user.write"}},
		{name: "all", flags: []string{"-scope", "a b", "-issuer", "i", "-audience", "a", "-ttl", "90s"}, ttl: 90,
			want: map[string]any{"client_id": "acme", "scope": "a b", "iss": "i", "aud": "a"}},
		{name: "no scope", flags: []string{"-scope", "", "-alg", "ES256"}, ttl: 3600,
			want: map[string]any{"client_id": "acme"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"-key", key, "-client", "acme"}, tt.flags...)
			before := time.Now().Unix()
			token := mustPrint(t, keytool.Token, args...)
			got, other := decode(t, token, 1), decode(t, mustPrint(t, keytool.Token, args...), 1)
			iat, _ := got["iat"].(float64)
			jti, _ := got["jti"].(string)
			if int64(iat) < before || int64(iat) > time.Now().Unix() || len(jti) < 22 || jti == other["jti"] {
				t.Errorf("claims %v, want iat of now and a jti of its own", got)
			}
			want := maps.Clone(tt.want)
			want["iat"], want["exp"], want["jti"] = iat, iat+tt.ttl, jti
			if !maps.Equal(got, want) {
				t.Errorf("claims %v, want %v", got, want)
			}
			if typ := decode(t, token, 0)["typ"]; typ != "at+jwt" { // which JWT_TYP may demand
				t.Errorf("typ = %v, want at+jwt", typ)
			}
		})
	}

	args := []string{"-key", key, "-client", "acme"}
	if err := keytool.Token(args, fullDisk{}, io.Discard); !errors.Is(err, errFull) {
		t.Errorf("Token with a full disk = %v, want %v", err, errFull)
	}
}

// If Token fails, it prints nothing.
func TestTokenFails(t *testing.T) {
	ec, rsa := filepath.Join(t.TempDir(), "ec.pem"), filepath.Join(t.TempDir(), "rsa.pem")
	mustPrint(t, keytool.Keygen, "-out", ec)
	mustPrint(t, keytool.Keygen, "-out", rsa, "-alg", "PS256")
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	testkit.Must(t, err)
	sec1 := writePEM(t, der(t, "EC PRIVATE KEY")(x509.MarshalECPrivateKey(small)))
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	public := writePEM(t, der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&other.PublicKey)))
	broken := writePEM(t, &pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}})

	with := func(key string, more ...string) []string {
		return append([]string{"-key", key, "-client", "acme"}, more...)
	}
	const (
		notKey = "-key must hold a key in PEM: RSA of 2048 bits or more, EC on P-256, P-384 or P-521, or Ed25519"
		badTTL = "-ttl must be from 1s to 8760h"
	)
	for _, tt := range []struct {
		name string
		args []string
		want string // in the error's message
	}{
		{name: "no -key", args: []string{"-client", "acme"}, want: "-key is required"},
		{name: "no -client", args: []string{"-key", ec}, want: "-client is required"},
		{name: "no such file", args: with(ec + ".none"), want: "-key cannot be read"},
		{name: "no PEM", args: with("keytool_test.go"), want: notKey},
		{name: "public key", args: with(public), want: "-key must hold a private key"},
		{name: "broken key", args: with(broken), want: notKey},
		{name: "P-224", args: with(sec1), want: notKey},
		{name: "ES256 for RSA", args: with(rsa, "-alg", "ES256"),
			want: "-alg must be one of [RS256 RS384 RS512 PS256 PS384 PS512]"},
		{name: "RS256 for EC", args: with(ec, "-alg", "RS256"), want: "-alg must be one of [ES256]"},
		{name: "short -ttl", args: with(ec, "-ttl", "999ms"), want: badTTL},
		{name: "long -ttl", args: with(ec, "-ttl", "8760h1s"), want: badTTL},
		{name: "-ttl without a unit", args: with(ec, "-ttl", "3600"), want: "-ttl"},
		{name: "argument", args: with(ec, "globex"), want: `token takes flags only, and not "globex"`},
	} {
		var stdout bytes.Buffer
		err := keytool.Token(tt.args, &stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%s: Token prints %q, %v, want only an error with %q", tt.name, &stdout, err, tt.want)
		}
	}
}

// A service with the key set that Keygen prints accepts the tokens that Token prints.
func TestKeygenAndToken(t *testing.T) {
	for _, alg := range bearer.Algorithms {
		t.Run(string(alg), func(t *testing.T) {
			key, set := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "jwks.json")
			mustPrint(t, keytool.Keygen, "-out", key, "-jwks", set, "-alg", string(alg))
			v := newVerifier(t, set, bearer.Config{
				Algorithms: []jose.SignatureAlgorithm{alg}, MaxLifetime: time.Hour,
			})
			token := mustPrint(t, keytool.Token, "-key", key, "-client", "acme", "-alg", string(alg))
			if got, err := v.Verify(token); err != nil || !got.HasScope {
				t.Errorf("Verify = %+v, %v, want a token with the scope", got, err)
			}
		})
	}
}
