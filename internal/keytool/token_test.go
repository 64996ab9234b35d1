package keytool_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/keytool"
	"authsession/internal/testkit"
)

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

	args := []string{"-key", key, "-client", "acme", "-ttl", "47h"}
	var stdout, stderr bytes.Buffer
	err := keytool.Token(args, &stdout, &stderr)
	if err != nil || stdout.Len() == 0 || !strings.Contains(stderr.String(), "JWT_MAX_LIFETIME") {
		t.Errorf("Token -ttl 47h warns %q, %v, want a token and a warning about JWT_MAX_LIFETIME", &stderr, err)
	}
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
	public := writePEM(t, der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&small.PublicKey)))
	broken := writePEM(t, &pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}})

	with := func(key string, more ...string) []string {
		return append([]string{"-key", key, "-client", "acme"}, more...)
	}
	const (
		notKey = "-key must hold a private key in PEM"
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
		{name: "no PEM", args: with("token_test.go"), want: notKey},
		{name: "public key", args: with(public), want: notKey},
		{name: "broken key", args: with(broken), want: notKey},
		{name: "P-224", args: with(sec1), want: "-key must be an RSA key of 2048 bits or more"},
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
