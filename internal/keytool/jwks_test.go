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
	"os"
	"path/filepath"
	"strings"
	"testing"

	"authsession/internal/keytool"
	"authsession/internal/testkit"
)

func TestJWKS(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		t.Helper()
		var text bytes.Buffer
		for _, block := range blocks {
			testkit.Must(t, pem.Encode(&text, block))
		}
		file := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(file, text.Bytes(), 0o600))
		return file
	}
	der := func(data []byte, err error) []byte {
		t.Helper()
		testkit.Must(t, err)
		return data
	}
	made, set := filepath.Join(dir, "made.pem"), filepath.Join(dir, "made.json")
	printed := mustPrint(t, keytool.Keygen, "-out", made, "-jwks", set)
	if written, err := os.ReadFile(set); err != nil || string(written) != printed+"\n" {
		t.Errorf("-jwks writes %q, %v, want %q", written, err, printed)
	}
	if again := mustPrint(t, keytool.JWKS, made); again != printed {
		t.Errorf("JWKS prints %s, want what Keygen printed: %s", again, printed)
	}

	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	testkit.Must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	testkit.Must(t, err)
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	testkit.Must(t, err)
	rsaPKCS1 := write("rsa.pem", &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})
	public := func(key any) *pem.Block {
		return &pem.Block{Type: "PUBLIC KEY", Bytes: der(x509.MarshalPKIXPublicKey(key))}
	}
	rsaPublic := write("rsa.pub", public(&rsaKey.PublicKey))
	ecSEC1 := write("ec.pem", &pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}},
		&pem.Block{Type: "EC PRIVATE KEY", Bytes: der(x509.MarshalECPrivateKey(ecKey))})
	smallPublic := write("small.pub", public(&small.PublicKey))

	out := mustPrint(t, keytool.JWKS, rsaPKCS1, ecSEC1, made)
	var got struct {
		Keys []map[string]string `json:"keys"`
	}
	testkit.Must(t, json.Unmarshal([]byte(out), &got))
	if len(got.Keys) != 3 {
		t.Fatalf("JWKS prints %d keys, want 3", len(got.Keys))
	}
	for i, alg := range []string{"", "ES384", "ES256"} {
		key := got.Keys[i]
		if key["alg"] != alg || key["use"] != "sig" || key["kid"] == "" || key["d"] != "" || key["p"] != "" {
			t.Errorf("key %d has alg %q, use %q, private members: %t", i, key["alg"], key["use"], key["d"] != "")
		}
	}
	if private, public := mustPrint(t, keytool.JWKS, rsaPKCS1), mustPrint(t, keytool.JWKS, rsaPublic); private != public {
		t.Error("a private key and its public half have different key sets")
	}

	brokenEC := write("broken ec.pem", &pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}})
	brokenRSA := write("broken rsa.pem", &pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{0}})

	for want, files := range map[string][]string{
		"needs the files of keys":        nil,
		"cannot be read":                 {made, filepath.Join(dir, "nope.pem")},
		"must hold a private or public":  {made, set},
		"P-256, P-384 or P-521":          {smallPublic},
		"broken ec.pem must hold":        {brokenEC},
		"broken rsa.pem must hold":       {made, brokenRSA},
		"a key that another file has":    {rsaPKCS1, rsaPublic},
		"flag provided but not defined:": {"-nope"},
	} {
		var stdout bytes.Buffer
		err := keytool.JWKS(files, &stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || stdout.Len() > 0 {
			t.Errorf("JWKS %v prints %q, %v, want an error with %q", files, &stdout, err, want)
		}
	}
}

// A command that is run twice leaves what the first run made, and one that fails leaves nothing.
func TestKeygenKeepsKeySet(t *testing.T) {
	dir := t.TempDir()
	key, set := filepath.Join(dir, "key.pem"), filepath.Join(dir, "jwks.json")
	first := mustPrint(t, keytool.Keygen, "-out", key, "-jwks", set)
	if err := keytool.Keygen([]string{"-out", key, "-jwks", set}, io.Discard, io.Discard); err == nil {
		t.Error("Keygen ran twice")
	}
	other := filepath.Join(dir, "other.pem")
	err := keytool.Keygen([]string{"-out", other, "-jwks", set}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-jwks must be a new file") {
		t.Errorf("Keygen over a key set: %v, want a refusal that names -jwks", err)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("the refused Keygen left a key: %v", err)
	}
	if now, err := os.ReadFile(set); err != nil || string(now) != first+"\n" {
		t.Errorf("the key set is %q, %v, want %q", now, err, first)
	}
	set2 := filepath.Join(dir, "2.json")
	if err := keytool.Keygen([]string{"-out", other, "-jwks", set2}, fullDisk{}, io.Discard); err == nil {
		t.Error("Keygen that cannot print: no error")
	}
	if _, err := os.Stat(set2); !os.IsNotExist(err) {
		t.Errorf("the failed Keygen left a key set: %v", err)
	}
}
