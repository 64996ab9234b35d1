package bearer_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// wantStats checks the counters of tokens.
func (v *verifier) wantStats(t testing.TB, verified, remembered, refused uint64) {
	t.Helper()
	got := v.Stats()
	if got.Verified != verified || got.Remembered != remembered || got.Refused != refused {
		t.Errorf("Stats() = %d verified, %d remembered, %d refused, want %d, %d, %d",
			got.Verified, got.Remembered, got.Refused, verified, remembered, refused)
	}
}

// A remembered token is good until its exp, while the key set is the same.
func TestVerifyRemembers(t *testing.T) {
	ec := testkit.EC()
	now := time.Now().Truncate(time.Second)
	setUp := func(t *testing.T) *verifier {
		v := newVerifier(config(&url.URL{Scheme: "file"}))
		v.SetNow(func() time.Time { return now })
		v.SetKeys(ec.Public())
		return v
	}
	token := testkit.Sign(t, ec, testkit.With(map[string]any{"exp": now.Unix() + 60}))

	t.Run("until exp", func(t *testing.T) {
		v := setUp(t)
		v.accept(t, token)
		v.wantStats(t, 1, 1, 0)
		v.SetNow(func() time.Time { return now.Add(89_999 * time.Millisecond) })
		v.accept(t, token)
		v.wantStats(t, 1, 3, 0)
		v.SetNow(func() time.Time { return now.Add(90 * time.Second) })
		v.refuse(t, token, expired)
		v.wantStats(t, 1, 3, 2)
	})
	t.Run("each token by itself", func(t *testing.T) {
		v := setUp(t)
		v.accept(t, token)
		weak := testkit.Sign(t, ec, testkit.With(map[string]any{"client_id": "other", "scope": "x"}))
		v.want(t, weak, bearer.Bearer{Client: "other"}, accepted)
		v.refuse(t, token[:strings.LastIndex(token, ".")+1], badSignature)
		v.accept(t, token)
		v.wantStats(t, 2, 4, 2)
	})
	t.Run("until the key goes", func(t *testing.T) {
		v := setUp(t)
		v.accept(t, token)
		v.SetKeys(testkit.NewKey(t, "ec", jose.ES256).Public())
		v.refuse(t, token, badSignature)
		v.SetKeys(testkit.Ed().Public())
		v.refuse(t, token, noKey)
		v.SetKeys(ec.Public(), testkit.Ed().Public())
		v.accept(t, token)
		v.wantStats(t, 2, 2, 4)
	})
	t.Run("so many", func(t *testing.T) {
		v := setUp(t)
		v.FillRemembered()
		for i := range 3 {
			v.accept(t, testkit.Sign(t, ec, testkit.With(map[string]any{"jti": i})))
		}
		v.wantStats(t, 3, 3, 0)
		if n := v.RememberedCount(); n != bearer.MaxRemembered {
			t.Errorf("%d tokens are remembered, want %d", n, bearer.MaxRemembered)
		}
	})
	t.Run("no bad one", func(t *testing.T) {
		v := setUp(t)
		v.refuse(t, "a.b.c", notBase64)
		v.refuse(t, token+"A", badSignature)
		v.refuse(t, testkit.Sign(t, ec, testkit.With(map[string]any{"exp": 1})), expired)
		v.wantStats(t, 0, 0, 6)
		if n := v.RememberedCount(); n != 0 {
			t.Errorf("%d bad tokens are remembered", n)
		}
	})
}

func TestVerifyTogether(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	good := testkit.Sign(t, testkit.EC(), testkit.Claims())
	bad := testkit.Sign(t, testkit.NewKey(t, "ec", jose.ES256), testkit.Claims())
	const callers, calls = 8, 50
	var running sync.WaitGroup
	for i := range callers {
		own := testkit.Sign(t, testkit.Ed(), testkit.With(map[string]any{"jti": i}))
		running.Go(func() {
			for range calls {
				for _, token := range []string{good, own} {
					if got, err := v.Verify(token); got.Client != "acme" || err != nil {
						t.Errorf("Verify of a good token = %+v, %v, want %+v", got, err, acme)
					}
				}
				if got, err := v.Verify(bad); got != (bearer.Bearer{}) || textOf(err) != badSignature {
					t.Errorf("Verify of a bad token = %+v, %v, want %q", got, err, badSignature)
				}
				if !v.Ready() {
					t.Error("Ready() = false after the key set was loaded")
				}
			}
		})
	}
	running.Wait()
	s := v.Stats()
	if good := s.Verified + s.Remembered; good != 2*callers*calls || s.Refused != callers*calls {
		t.Errorf("Stats() = %+v, want %d good and %d refused", s, 2*callers*calls, callers*calls)
	}
	// Only callers who are there together can each be the first for the token that all have.
	if least := uint64(callers + 1); s.Verified < least || s.Verified > 2*callers {
		t.Errorf("Stats() = %+v, want %d to %d verified", s, least, 2*callers)
	}
}

// knownTexts are all that Verify's errors may say.
func knownTexts() map[string]bool {
	known := map[string]bool{}
	for _, text := range []string{
		notCompact, notBase64, malformed, hasCrit, hasB64, hasZip, badTyp, badKid, noKey, badSignature,
		noExp, expired, tooLong, badIssuer, badAudience, noClient, bearer.ErrNoKeys.Error(),
	} {
		known[text] = true
	}
	for _, part := range []string{"header", "payload"} {
		for _, text := range []string{notUTF8, notObject, notJSON, nameTwice, tooDeep} {
			known[part+text] = true
		}
	}
	for _, date := range []string{"exp", "nbf", "iat"} {
		known[date+notNumber], known[date+inFuture] = true, date != "exp"
	}
	return known
}

// FuzzToken checks that nothing is good but what one of our keys signed, and that no error says what was in the token.
func FuzzToken(f *testing.F) {
	// Fuzzing runs in several processes, and what is good in one must be in all. So keys and time are fixed.
	now := time.Unix(1_800_000_000, 0)
	seed := bytes.Repeat([]byte{7}, 32)
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed)
	testkit.Must(f, err)
	ed := keytool.Key{ID: "ed", Algorithm: jose.EdDSA, Private: ed25519.NewKeyFromSeed(seed)}
	ec := keytool.Key{ID: "ec", Algorithm: jose.ES256, Private: private}
	c := config(&url.URL{Scheme: "file"})
	c.Algorithms, c.MaxLifetime = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256}, time.Hour
	v := newVerifier(c)
	v.SetNow(func() time.Time { return now })
	v.SetKeys(ed.Public(), ec.Public())

	const claims = `{"client_id":"acme","scope":"api:user.write","exp":1800000060}`
	signed := map[string]bool{} // header and payload of the tokens that are good
	for _, k := range []keytool.Key{ed, ec} {
		for _, header := range []string{
			header(k, ""), header(k, `,"typ":"at+jwt"`), fmt.Sprintf(`{"alg":%q}`, k.Algorithm),
		} {
			signed[header+"."+claims] = true
			token := raw(f, k, header, claims)
			v.accept(f, token)
			f.Add(token)
			f.Add(token[:len(token)-2])
			f.Add(token + ".")
		}
		for _, more := range []string{
			`,"crit":["exp"]`, `,"b64":false`, `,"zip":"DEF"`, `,"typ":null`, `,"alg":"none"`, `,"kid":5`, `,"x5c":["AA"]`,
			`,"jku":"https://thief.example"`, `,"jwk":{"kty":"oct","k":"AA"}`, `,"x":"\ud800"`, `,"x":{"a":1,"a":1}`,
		} {
			f.Add(b64(header(k, more)) + "." + b64(claims) + "." + b64(signature(f, k, "another input")))
		}
		// Signed, but the claims do not do.
		for _, payload := range []string{
			`{}`, `null`, `[]`, ``, `{"exp":1}`, `{"exp":1e400}`, `{"exp":1800000060}`, `{"exp":1800000060,"exp":1800000060}`,
			`{"exp":1800000060,"nbf":"x"}`, `{"exp":1800000060,"x":[{"a":1,"a":1}]}`,
			`{"exp":1800000060,"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`,
		} {
			f.Add(raw(f, k, header(k, ""), payload))
		}
	}
	f.Add(hs256(`{"alg":"HS256","kid":"ed"}`, claims, ed.Private.Public().(ed25519.PublicKey)))
	f.Add(b64(`{"alg":"none"}`) + "." + b64(claims) + ".")
	f.Add(b64(`{"alg":"ES256","kid":"unknown"}`) + "." + b64(claims) + "." + b64(make([]byte, 64)))
	for _, token := range []string{"", ".", "..", "a.b", "a.b.c.d", "\xff", " "} {
		f.Add(token)
	}
	known := knownTexts()
	f.Fuzz(func(t *testing.T, token string) {
		got, err := v.Verify(token)
		got.KeyID = ""
		if err != nil {
			if got != (bearer.Bearer{}) || !known[err.Error()] {
				t.Errorf("Verify(%q) = %+v, %q, want no bearer and a text of ours", token, got, err)
			}
			return
		}
		// The token's text may differ where base64 leaves bits over. What it says may not.
		parts := strings.Split(token, ".")
		header, _ := base64.RawURLEncoding.DecodeString(parts[0])
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		if got != acme || !signed[string(header)+"."+string(payload)] {
			t.Errorf("Verify(%q) = %+v: nobody signed that", token, got)
		}
	})
}

func BenchmarkToken(b *testing.B) {
	v := newVerifier(config(ourKeys(b))).load(b)
	for _, key := range []keytool.Key{testkit.RSA(), testkit.EC(), testkit.Ed()} {
		token := testkit.Sign(b, key, testkit.Claims())
		b.Run("first/"+string(key.Algorithm), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := v.VerifyNow(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	token := testkit.Sign(b, testkit.RSA(), testkit.Claims())
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
