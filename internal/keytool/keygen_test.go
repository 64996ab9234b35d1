package keytool_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

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

// Keygen overwrites no file. If it fails, it prints nothing and leaves no file.
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
	err := keytool.Keygen([]string{"-out", at("new.pem"), "-jwks", at("new.json")}, fullDisk{}, io.Discard)
	if !errors.Is(err, errFull) {
		t.Errorf("Keygen with a full disk = %v, want %v", err, errFull)
	}
	if after := files(); !slices.Equal(after, before) || mustPrint(t, keytool.JWKS, at("old.pem")) != old {
		t.Errorf("files %q, want %q with the old key", after, before)
	}
}
