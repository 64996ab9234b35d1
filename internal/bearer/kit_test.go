package bearer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
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

// Why Verify refuses: the whole texts of its errors. The tests compare whole texts, so no error quotes its token.
const (
	accepted = "" // a token of acme with the scope

	notCompact   = "not a compact JWT"
	notBase64    = "header is not base64url"
	malformed    = "malformed, or signed with an algorithm that is not allowed"
	hasCrit      = "header has crit"
	hasB64       = "header has b64"
	hasZip       = "header has zip"
	badTyp       = "typ is not of an access token"
	badKid       = "kid is not a string"
	noKey        = "no key of the set for its kid and alg"
	badSignature = "bad signature"
	noExp        = "no exp"
	expired      = "expired"
	tooLong      = "exp is further away than JWT_MAX_LIFETIME"
	badIssuer    = "iss is not JWT_ISSUER"
	badAudience  = "aud does not have JWT_AUDIENCE"
	noClient     = "no client: none of JWT_CLIENT_CLAIM is a non-empty string"

	// These follow "header" or "payload".
	notUTF8   = " must be UTF-8"
	notObject = " must be one JSON object"
	notJSON   = " must be valid JSON without unpaired surrogate escapes, and nothing after the object"
	nameTwice = " must not give a member name twice in one object"
	tooDeep   = " must not nest deeper than 1000 levels"

	// These follow the name of a claim.
	notNumber = " is not a number"
	inFuture  = " is in the future"
)

var acme = bearer.Bearer{Client: "acme", HasScope: true}

// verifier is a Verifier over its log.
type verifier struct {
	*bearer.Verifier
	log *testkit.Log
}

// newVerifier does not run yet.
func newVerifier(c bearer.Config) *verifier {
	log := &testkit.Log{}
	return &verifier{bearer.New(c, slog.New(slog.NewJSONHandler(log, nil))), log}
}

// start runs v until the test ends.
func (v *verifier) start(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { v.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// load starts v, and returns it when its key set is there.
func (v *verifier) load(t testing.TB) *verifier {
	t.Helper()
	v.start(t)
	testkit.WaitFor(t, 5*time.Second, "the key set", v.Ready)
	return v
}

// config is the service's default one.
func config(keySet *url.URL) bearer.Config {
	return bearer.Config{
		JWKSURL:      keySet,
		Algorithms:   []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA},
		ClientClaims: []string{"client_id", "azp", "sub"},
		MaxLifetime:  24 * time.Hour,
	}
}

// keyFile is the URL of a file with a key set of whatever is a key or shall pass for one.
func keyFile(t testing.TB, keys ...any) *url.URL {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	testkit.Must(t, os.WriteFile(file, []byte(keySetJSON(t, keys...)), 0o600))
	return &url.URL{Scheme: "file", Path: file}
}

// ourKeys is the URL of a file with testkit's keys "rsa", "ec" and "ed".
func ourKeys(t testing.TB) *url.URL {
	t.Helper()
	return keyFile(t, testkit.RSA().Public(), testkit.EC().Public(), testkit.Ed().Public())
}

func keySetJSON(t testing.TB, keys ...any) string {
	t.Helper()
	return asJSON(t, map[string]any{"keys": keys})
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	testkit.Must(t, err)
	return string(data)
}

// want checks what Verify says of a token, and that the counters count it. It asks twice, since a good token is
// remembered and a bad one is not. No other caller may be there.
func (v *verifier) want(t testing.TB, token string, want bearer.Bearer, why string) {
	t.Helper()
	for range 2 {
		before := v.Stats()
		got, err := v.Verify(token)
		got.KeyID, got.TokenID = "", "" // TestTokenForLog has those
		if got != want || textOf(err) != why {
			t.Errorf("Verify(%.100q) = %+v, %v, want %+v, %q", token, got, err, want, why)
		}
		after := v.Stats()
		good, bad := uint64(0), uint64(0)
		switch {
		case why == accepted:
			good = 1
		case why != bearer.ErrNoKeys.Error():
			bad = 1
		}
		gotGood := after.Verified + after.Remembered - before.Verified - before.Remembered
		if gotBad := after.Refused - before.Refused; gotGood != good || gotBad != bad {
			t.Errorf("Verify(%.100q) counts %d good and %d refused, want %d and %d", token, gotGood, gotBad, good, bad)
		}
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// accept checks that a token is good and acme's.
func (v *verifier) accept(t testing.TB, token string) {
	t.Helper()
	v.want(t, token, acme, accepted)
}

// refuse checks that a token is bad, and why.
func (v *verifier) refuse(t testing.TB, token, why string) {
	t.Helper()
	v.want(t, token, bearer.Bearer{}, why)
}

// tokenTest is a token and why Verify refuses it, or accepted.
type tokenTest struct {
	name, token, why string
}

// check runs the tests, and checks that the log has no part of a token but what any text may have.
func (v *verifier) check(t *testing.T, tests []tokenTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.why == accepted {
				v.accept(t, tt.token)
			} else {
				v.refuse(t, tt.token, tt.why)
			}
			for part := range strings.SplitSeq(tt.token, ".") {
				if len(part) > 16 && v.log.Has(part) {
					t.Errorf("log has %.100q of the token", part)
				}
			}
		})
	}
}

func b64[T string | []byte](data T) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

// header is a token's header by k with more members.
func header(k keytool.Key, more string) string {
	return fmt.Sprintf(`{"alg":%q,"kid":%q%s}`, k.Algorithm, k.ID, more)
}

// payload is testkit.Claims as JSON with more members.
func payload(t testing.TB, more string) string {
	t.Helper()
	return strings.TrimSuffix(asJSON(t, testkit.Claims()), "}") + more + "}"
}

// raw is a token that k signed, with a header and a payload as they stand. k must be for RS256, ES256 or EdDSA,
// whatever the header says.
func raw(t testing.TB, k keytool.Key, header, payload string) string {
	t.Helper()
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(signature(t, k, input))
}

func signature(t testing.TB, k keytool.Key, input string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	switch private := k.Private.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(private, []byte(input))
	case *rsa.PrivateKey:
		signature, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, digest[:])
		testkit.Must(t, err)
		return signature
	case *ecdsa.PrivateKey: // RFC 7518, section 3.4: both numbers at full length
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		testkit.Must(t, err)
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	t.Fatalf("signing with a %T", k.Private)
	return nil
}

// derSignature is an ES256 signature in the form that X.509 has it.
type derSignature struct{ R, S *big.Int }

// hs256 is a token with this header and payload that secret authenticates.
func hs256(header, payload string, secret []byte) string {
	input := b64(header) + "." + b64(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + b64(mac.Sum(nil))
}

// tokenOfLength is a good token of n bytes.
func tokenOfLength(t testing.TB, n int) string {
	t.Helper()
	k, encoded := testkit.EC(), base64.RawURLEncoding.EncodedLen
	for head := range 3 { // no base64 has a length of 1 mod 4, so one part alone can't reach every length
		header := header(k, `,"pad":"`+strings.Repeat("x", head)+`"`)
		for pad := n / 2; ; pad++ {
			claims := payload(t, `,"pad":"`+strings.Repeat("x", pad)+`"`)
			length := encoded(len(header)) + 1 + encoded(len(claims)) + 1 + encoded(64)
			if length == n {
				return raw(t, k, header, claims)
			}
			if length > n {
				break
			}
		}
	}
	t.Fatalf("no token of %d bytes", n)
	return ""
}

// claim is a token by the key "ec" with one claim set to this JSON; "" leaves it out.
func claim(t testing.TB, name, value string) string {
	t.Helper()
	if value == "" {
		return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{name: nil}))
	}
	return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{name: json.RawMessage(value)}))
}

func newES256(t testing.TB, id string) keytool.Key {
	t.Helper()
	return testkit.NewKey(t, id, jose.ES256)
}

// sign is a good token by k.
func sign(t testing.TB, k keytool.Key) string {
	t.Helper()
	return testkit.Sign(t, k, testkit.Claims())
}
