package keytool_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
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
	v := bearer.New(c, slog.New(slog.DiscardHandler))
	var running sync.WaitGroup
	running.Go(func() { v.Run(t.Context()) }) // t.Context ends before Cleanup
	t.Cleanup(running.Wait)
	testkit.WaitFor(t, 10*time.Second, "the key set", v.Ready)
	return v
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

// decode returns the header (part 0) or the claims (part 1) of a token.
func decode(t testing.TB, token string, part int) (members map[string]any) {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[part])
	testkit.Must(t, err)
	testkit.Must(t, json.Unmarshal(data, &members))
	return members
}
