package keytool_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
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

// command is Keygen or Token.
type command func(args []string, stdout, stderr io.Writer) error

// mustPrint returns what the command prints, which must be one line and nothing on stderr.
func mustPrint(t testing.TB, run command, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	err := run(args, &stdout, &stderr)
	line, rest, ended := strings.Cut(stdout.String(), "\n")
	if err != nil || !ended || line == "" || rest != "" || stderr.Len() > 0 {
		t.Fatalf("with %q it prints %q and %q, %v, want one line on stdout", args, &stdout, &stderr, err)
	}
	return line
}

// keygen returns the file of a new private key, and the configuration of a service that has its key set.
func keygen(t testing.TB, flags ...string) (key string, c bearer.Config) {
	t.Helper()
	dir := t.TempDir()
	key, set := filepath.Join(dir, "key.pem"), filepath.Join(dir, "jwks.json")
	printed := mustPrint(t, keytool.Keygen, append([]string{"-out", key}, flags...)...)
	testkit.Must(t, os.WriteFile(set, []byte(printed+"\n"), 0o644))
	return key, bearer.Config{
		JWKSURL:      &url.URL{Scheme: "file", Path: set},
		Algorithms:   []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA},
		ClientClaims: []string{"client_id"},
		MaxLifetime:  24 * time.Hour,
	}
}

// newVerifier is a service's Verifier that has loaded its key set.
func newVerifier(t testing.TB, c bearer.Config) *bearer.Verifier {
	t.Helper()
	v := bearer.New(c, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { v.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	testkit.WaitFor(t, 5*time.Second, "the key set", v.Ready)
	return v
}

// A service with the key set that Keygen prints takes the tokens that Token prints.
func TestKeygenAndToken(t *testing.T) {
	for _, alg := range append(slices.Clone(bearer.Algorithms), "") { // "": the defaults of all three fit each other
		t.Run(cmp.Or(string(alg), "default"), func(t *testing.T) {
			var flags, signFlags []string
			if alg != "" {
				flags = []string{"-alg", string(alg)}
			}
			if strings.HasPrefix(string(alg), "RS") && alg != jose.RS256 || strings.HasPrefix(string(alg), "PS") {
				signFlags = flags // an RSA key does not tell
			}
			key, c := keygen(t, flags...)
			if alg != "" {
				c.Algorithms = []jose.SignatureAlgorithm{alg}
			}
			args := append([]string{"-key", key, "-client", "acme", "-ttl", "10m"}, signFlags...)
			got, err := newVerifier(t, c).Verify(mustPrint(t, keytool.Token, args...))
			got.KeyID, got.TokenID = "", ""
			if want := (bearer.Bearer{Client: "acme", HasScope: true}); got != want || err != nil {
				t.Errorf("Verify = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

type fullDisk struct{}

var errFull = errors.New("no space left")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestWrongFlags(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, kind string, der []byte, err error) {
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(at(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	mustPrint(t, keytool.Keygen, "-out", at("ec.pem"))
	mustPrint(t, keytool.Keygen, "-out", at("rsa.pem"), "-alg", "PS256")
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	testkit.Must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(p224)
	write("p224.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(&p224.PublicKey)
	write("public.pem", "PUBLIC KEY", der, err)
	der, err = x509.MarshalECPrivateKey(p224)
	write("sec1.pem", "EC PRIVATE KEY", der, err)
	write("broken.pem", "EC PRIVATE KEY", []byte{0}, nil)
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	testkit.Must(t, err)
	der, err = x509.MarshalPKCS8PrivateKey(x25519)
	write("x25519.pem", "PRIVATE KEY", der, err)
	testkit.Must(t, os.WriteFile(at("text.pem"), []byte("no key\n"), 0o600))

	by := func(name string, more ...string) []string {
		return append([]string{"-key", at(name), "-client", "acme"}, more...)
	}
	good := func(more ...string) []string { return by("ec.pem", more...) }
	const notKey = "-key must hold a private key in PEM"
	ofRSA := "-alg must be one of [RS256 RS384 RS512 PS256 PS384 PS512]"
	for _, tt := range []struct {
		name string
		run  command
		args []string
		want string // in the error's text
	}{
		{"Keygen", keytool.Keygen, nil, "-out is required"},
		{"Keygen", keytool.Keygen, []string{"-out", ""}, "-out is required"},
		{"Keygen", keytool.Keygen, []string{"-out"}, "-out"},
		{"Keygen", keytool.Keygen, []string{"-out", at("no/such/dir")}, "-out must be a new file"},
		{"Keygen", keytool.Keygen, []string{"-out", dir}, "-out must be a new file"},
		{"Keygen", keytool.Keygen, []string{"-out", at("new.pem"), "-alg", "HS256"}, "-alg must be one of [RS256 "},
		{"Keygen", keytool.Keygen, []string{"-out", at("new.pem"), "-alg", "none"}, "-alg must be one of"},
		{"Keygen", keytool.Keygen, []string{"-out", at("new.pem"), "-alg", ""}, "-alg must be one of"},
		{"Keygen", keytool.Keygen, []string{"-out", at("new.pem"), "-bits", "1024"}, "-bits"},
		{"Keygen", keytool.Keygen, []string{"-out", at("new.pem"), "now"}, `keygen takes flags only, and not "now"`},
		{"Keygen", keytool.Keygen, []string{at("new.pem")}, "keygen takes flags only"},
		{"Token", keytool.Token, nil, "-key is required"},
		{"Token", keytool.Token, []string{"-client", "acme"}, "-key is required"},
		{"Token", keytool.Token, []string{"-key", at("ec.pem")}, "-client is required"},
		{"Token", keytool.Token, []string{"-key", at("ec.pem"), "-client", ""}, "-client is required"},
		{"Token", keytool.Token, by("none.pem"), "-key"},
		{"Token", keytool.Token, []string{"-key", dir, "-client", "acme"}, "-key"},
		{"Token", keytool.Token, by("text.pem"), notKey},
		{"Token", keytool.Token, by("public.pem"), notKey},
		{"Token", keytool.Token, by("broken.pem"), notKey},
		{"Token", keytool.Token, by("sec1.pem"), "-key must be an RSA key of 2048 bits or more"},
		{"Token", keytool.Token, by("x25519.pem"), notKey},
		{"Token", keytool.Token, by("p224.pem"), "-key must be an RSA key of 2048 bits or more"},
		{"Token", keytool.Token, by("rsa.pem", "-alg", "ES256"), ofRSA},
		{"Token", keytool.Token, good("-alg", "RS256"), "-alg must be one of [ES256]"},
		{"Token", keytool.Token, good("-alg", "none"), "-alg must be one of [ES256]"},
		{"Token", keytool.Token, good("-ttl", "0"), "-ttl must be from 1s to 8760h"},
		{"Token", keytool.Token, good("-ttl", "-1h"), "-ttl must be"},
		{"Token", keytool.Token, good("-ttl", "999ms"), "-ttl must be"},
		{"Token", keytool.Token, good("-ttl", "8760h1s"), "-ttl must be"},
		{"Token", keytool.Token, good("-ttl", "3600"), "-ttl"},
		{"Token", keytool.Token, good("-issuer"), "-issuer"},
		{"Token", keytool.Token, good("globex"), `token takes flags only, and not "globex"`},
	} {
		var stdout bytes.Buffer
		err := tt.run(tt.args, &stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%s(%q) prints %q, %v, want only an error with %q", tt.name, tt.args, &stdout, err, tt.want)
		}
	}
	if _, err := os.Lstat(at("new.pem")); !os.IsNotExist(err) {
		t.Errorf("a refused Keygen left its file (%v)", err)
	}
}
