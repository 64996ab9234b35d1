package keytool_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"authsession/internal/keytool"
	"authsession/internal/testkit"
)

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
		{name: "no PEM", files: []string{made, "jwks_test.go"}, want: "must hold a private or public"},
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
