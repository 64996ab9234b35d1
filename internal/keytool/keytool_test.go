package keytool_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
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
	"math/big"
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
	for name, alg := range map[string]jose.SignatureAlgorithm{
		"PS256": jose.PS256, "ES512": jose.ES512, "EdDSA": jose.EdDSA, "Ed25519": jose.EdDSA,
	} {
		key, set := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "jwks.json")
		printed := mustPrint(t, keytool.Keygen, "-alg", name, "-out", key, "-jwks", set)
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
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	testkit.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	made := filepath.Join(t.TempDir(), "made.pem")
	printed := mustPrint(t, keytool.Keygen, "-out", made)
	pkcs1 := der(t, "RSA PRIVATE KEY")(x509.MarshalPKCS1PrivateKey(rsaKey), nil)
	spki := der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&rsaKey.PublicKey))
	pkcs8 := der(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(edKey))
	cert := der(t, "CERTIFICATE")(x509.CreateCertificate(rand.Reader, template, template, &rsaKey.PublicKey, rsaKey))
	ecParameters := &pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}}
	sec1 := der(t, "EC PRIVATE KEY")(x509.MarshalECPrivateKey(ecKey))
	rsaPrivate, rsaPublic, ecPrivate := writePEM(t, pkcs1), writePEM(t, spki), writePEM(t, ecParameters, sec1)

	if again := mustPrint(t, keytool.JWKS, made); again != printed {
		t.Errorf("JWKS prints %s, want what Keygen printed: %s", again, printed)
	}
	for name, file := range map[string]string{
		"public key": rsaPublic, "certificate": writePEM(t, cert), "private key and certificate": writePEM(t, cert, pkcs1),
		"PKCS#1 public key": writePEM(t, der(t, "RSA PUBLIC KEY")(x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey), nil)),
	} {
		if mustPrint(t, keytool.JWKS, rsaPrivate) != mustPrint(t, keytool.JWKS, file) {
			t.Errorf("JWKS prints different key sets for a private key and its %s", name)
		}
	}
	for _, files := range [][]string{
		{rsaPrivate, ecPrivate, made, writePEM(t, pkcs8)},
		{writePEM(t, cert, pkcs1, ecParameters, sec1, spki), made, writePEM(t, pkcs8, pkcs8)},
	} {
		var set struct{ Keys []map[string]string }
		printed = mustPrint(t, keytool.JWKS, files...)
		testkit.Must(t, json.Unmarshal([]byte(printed), &set))
		for i, alg := range []string{"", "ES384", "ES256", "EdDSA"} {
			k := set.Keys[i]
			if len(set.Keys) != 4 || k["alg"] != alg || k["use"] != "sig" || k["kid"] == "" || k["d"] != "" || k["p"] != "" {
				t.Errorf("JWKS prints %s, want 4 public keys, key %d for %q", printed, i, alg)
			}
		}
	}

	// The second block of a file is not usable.
	rsaOf := func(bits uint) *pem.Block {
		n := new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1)
		return der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537}))
	}
	pss := func(block *pem.Block) *pem.Block { // the same key, as one for RSASSA-PSS alone (RFC 4055, section 3.1)
		const rsaEncryption, rsassaPSS = "\xf7\x0d\x01\x01\x01", "\xf7\x0d\x01\x01\x0a" // the last bytes of the OIDs
		return &pem.Block{Type: block.Type, Bytes: bytes.Replace(block.Bytes, []byte(rsaEncryption), []byte(rsassaPSS), 1)}
	}
	encrypted := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: pkcs1.Bytes[8:],
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}}
	const unsupported = "its type or size is not supported"
	for _, tt := range []struct {
		block *pem.Block
		want  string // after the block's type
	}{
		{pss(spki), "x509: unknown public key algorithm"}, {pss(cert), unsupported},
		{pss(der(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(rsaKey))), "x509: "},
		{der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&small.PublicKey)), unsupported},
		{der(t, "EC PRIVATE KEY")(x509.MarshalECPrivateKey(small)), unsupported},
		{rsaOf(1024), unsupported}, {rsaOf(2047), unsupported}, {rsaOf(8193), unsupported},
		{encrypted, "it is encrypted"}, {&pem.Block{Type: "ENCRYPTED PRIVATE KEY"}, "it is encrypted"},
		{&pem.Block{Type: "OPENSSH PRIVATE KEY"}, "it is not readable"},
		{&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}}, "x509: "}, {&pem.Block{Type: "PUBLIC KEY"}, "asn1: "},
	} {
		file, want := writePEM(t, sec1, tt.block, pkcs8), " has no usable key in PEM block 2 ("+tt.block.Type+"): "+tt.want
		var stdout bytes.Buffer
		err := keytool.JWKS([]string{made, file}, &stdout, io.Discard)
		if err == nil || !strings.HasPrefix(err.Error(), file+want) || stdout.Len() > 0 {
			t.Errorf("JWKS prints %q, %v, want only an error with %q", &stdout, err, want)
		}
	}
	for name, change := range map[string]func(string) string{
		"CRLF":              func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"a byte order mark": func(s string) string { return "\ufeff" + s },
		"spaces in front":   func(s string) string { return strings.ReplaceAll(s, "-----BEGIN", "  -----BEGIN") },
		"no line ends":      func(s string) string { return strings.ReplaceAll(s, "-----\n-----", "----------") },
	} {
		file := writePEM(t, sec1, pkcs8)
		want := mustPrint(t, keytool.JWKS, file)
		text, err := os.ReadFile(file)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(file, []byte(change(string(text))), 0o600))
		if got := mustPrint(t, keytool.JWKS, file); got != want {
			t.Errorf("JWKS of a file with %s prints %s, want %s", name, got, want)
		}
	}
	damaged := writePEM(t, sec1)
	text, err := os.ReadFile(damaged)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(damaged, append([]byte("-----BEGIN PUBLIC KEY-----\n"), text...), 0o600)) // has no END

	for _, tt := range []struct {
		name  string
		files []string
		want  string // in the error's message
	}{
		{name: "no file", want: "needs the files of keys"},
		{name: "no such file", files: []string{made, made + ".none"}, want: "open " + made + ".none: "},
		{name: "no PEM", files: []string{made, "keytool.go"}, want: "keytool.go has no key in PEM"},
		{name: "damaged block", files: []string{made, damaged}, want: "in PEM block 1 (damaged): it is not readable"},
		{name: "same file twice", files: []string{made, made}, want: "a key that another file has"},
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
	private := der(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(other))
	spki := der(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(&other.PublicKey))
	public, two := writePEM(t, spki), writePEM(t, private, private)
	mustPrint(t, keytool.Token, "-key", writePEM(t, spki, private), "-client", "acme") // the public key does no harm
	broken := writePEM(t, &pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0}})

	with := func(key string, more ...string) []string {
		return append([]string{"-key", key, "-client", "acme"}, more...)
	}
	const (
		noKey  = " has no usable key in PEM block 1 (EC PRIVATE KEY): "
		notOne = " does not hold exactly one private key"
		badTTL = "-ttl must be from 1s to 8760h"
	)
	for _, tt := range []struct {
		name string
		args []string
		want string // in the error's message
	}{
		{name: "no -key", args: []string{"-client", "acme"}, want: "-key is required"},
		{name: "no -client", args: []string{"-key", ec}, want: "-client is required"},
		{name: "no such file", args: with(ec + ".none"), want: "reading -key: open " + ec + ".none: "},
		{name: "no PEM", args: with("keytool.go"), want: "reading -key: keytool.go has no key in PEM"},
		{name: "public key", args: with(public), want: public + notOne},
		{name: "two private keys", args: with(two), want: two + notOne},
		{name: "broken key", args: with(broken), want: broken + noKey},
		{name: "P-224", args: with(sec1), want: sec1 + noKey},
		{name: "ES256 for RSA", args: with(rsa, "-alg", "ES256"),
			want: rsa + " holds a key for [RS256 RS384 RS512 PS256 PS384 PS512], not for ES256"},
		{name: "RS256 for EC", args: with(ec, "-alg", "RS256"), want: ec + " holds a key for [ES256], not for RS256"},
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
	for _, name := range append(slices.Clone(bearer.Algorithms), "Ed25519") {
		t.Run(string(name), func(t *testing.T) {
			alg, _ := bearer.ParseAlgorithm(string(name))
			key, set := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "jwks.json")
			mustPrint(t, keytool.Keygen, "-out", key, "-jwks", set, "-alg", string(name))
			v := newVerifier(t, set, bearer.Config{
				Algorithms: []jose.SignatureAlgorithm{alg}, MaxLifetime: time.Hour,
			})
			token := mustPrint(t, keytool.Token, "-key", key, "-client", "acme", "-alg", string(name))
			if got, err := v.Verify(token); err != nil || !got.HasScope {
				t.Errorf("Verify = %+v, %v, want a token with the scope", got, err)
			}
		})
	}
}
