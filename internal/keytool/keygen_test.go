package keytool_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"authsession/internal/keytool"
	"authsession/internal/testkit"
)

func TestKeygenFile(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	printed := mustPrint(t, keytool.Keygen, "-out", key)
	info, err := os.Stat(key)
	testkit.Must(t, err)
	if mode := info.Mode(); mode != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("the key's file has mode %v, want 0600", mode)
	}
	written, err := os.ReadFile(key)
	testkit.Must(t, err)
	block, rest := pem.Decode(written)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Fatalf("the key's file is not one PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	testkit.Must(t, err)
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		t.Fatalf("the key is a %T, want one for ES256", parsed)
	}
	point, err := private.PublicKey.Bytes() // 4, x, y
	testkit.Must(t, err)
	encode := base64.RawURLEncoding.EncodeToString
	x, y := encode(point[1:33]), encode(point[33:])
	thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y)) // RFC 7638
	want := map[string]any{
		"alg": "ES256", "crv": "P-256", "kid": encode(thumbprint[:]), "kty": "EC", "use": "sig", "x": x, "y": y,
	}
	var got struct {
		Keys []map[string]any `json:"keys"`
	}
	testkit.Must(t, json.Unmarshal([]byte(printed), &got))
	if len(got.Keys) != 1 || !maps.Equal(got.Keys[0], want) {
		t.Errorf("Keygen prints %s, want one key %v", printed, want)
	}
	if mustPrint(t, keytool.Keygen, "-out", key+"2") == printed {
		t.Error("Keygen made the same key twice")
	}

	var stdout bytes.Buffer
	err = keytool.Keygen([]string{"-out", key}, &stdout, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-out must be a new file") || stdout.Len() > 0 {
		t.Errorf("Keygen over a key prints %q, %v, want a refusal that names -out", &stdout, err)
	}
	if now, err := os.ReadFile(key); err != nil || !bytes.Equal(now, written) {
		t.Errorf("the refused Keygen changed the file: %v", err)
	}
	link := key + ".link"
	testkit.Must(t, os.Symlink(key+".nowhere", link))
	if err := keytool.Keygen([]string{"-out", link}, io.Discard, io.Discard); err == nil {
		t.Error("Keygen wrote through a symbolic link")
	}
}

func TestKeygenPrintsNothingPrivate(t *testing.T) {
	for _, tt := range []struct {
		alg  string
		want []string // members of the key
	}{
		{"PS256", []string{"alg", "e", "kid", "kty", "n", "use"}},
		{"ES512", []string{"alg", "crv", "kid", "kty", "use", "x", "y"}},
		{"EdDSA", []string{"alg", "crv", "kid", "kty", "use", "x"}},
	} {
		var set map[string][]map[string]string
		printed := mustPrint(t, keytool.Keygen, "-alg", tt.alg, "-out", filepath.Join(t.TempDir(), "key.pem"))
		testkit.Must(t, json.Unmarshal([]byte(printed), &set))
		keys := set["keys"]
		if len(set) != 1 || len(keys) != 1 || keys[0]["alg"] != tt.alg || keys[0]["use"] != "sig" {
			t.Fatalf("%s: Keygen prints %s, want nothing but one key with alg and use", tt.alg, printed)
		}
		if got := slices.Sorted(maps.Keys(keys[0])); !slices.Equal(got, tt.want) {
			t.Errorf("%s: the key has members %q, want %q", tt.alg, got, tt.want)
		}
	}
}

// A key whose set could not be printed is taken back.
func TestKeygenCannotPrint(t *testing.T) {
	reader, closedPipe, err := os.Pipe()
	testkit.Must(t, err)
	defer closedPipe.Close()
	testkit.Must(t, reader.Close())
	readOnly, err := os.Open(os.DevNull)
	testkit.Must(t, err)
	defer readOnly.Close()
	for name, stdout := range map[string]io.Writer{
		"a closed pipe": closedPipe, "a file open for reading": readOnly, "a full disk": fullDisk{},
	} {
		key := filepath.Join(t.TempDir(), "key.pem")
		err := keytool.Keygen([]string{"-out", key}, stdout, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "writing key and key set") {
			t.Errorf("Keygen where stdout is %s = %v, want an error that says what failed", name, err)
		}
		if _, err := os.Lstat(key); !os.IsNotExist(err) {
			t.Errorf("Keygen where stdout is %s: the key's file is still there (%v)", name, err)
		}
	}
}
