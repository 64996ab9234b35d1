package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// keySetJSON is a key set of whatever is a key or shall pass for one.
func keySetJSON(t testing.TB, keys ...any) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// newKeySetServer is a test server with a key set of the test's own.
func newKeySetServer(t testing.TB, env map[string]string, keys ...any) *testServer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, []byte(keySetJSON(t, keys...)), 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"JWKS_URL": "file://" + file}
	for name, value := range env {
		all[name] = value
	}
	ts := newTestServer(t, all)
	ts.jwks = file
	waitFor(t, 5*time.Second, "the key set", ts.verifier.keys.loaded)
	return ts
}

// keyServer is an authorization server's key set over HTTP. A test may change what it
// answers while it runs.
type keyServer struct {
	*httptest.Server
	mu      sync.Mutex
	answer  http.HandlerFunc
	fetches []time.Time
}

func newKeyServer(t testing.TB, answer http.HandlerFunc) *keyServer {
	t.Helper()
	ks := &keyServer{answer: answer}
	ks.Server = httptest.NewServer(ks)
	t.Cleanup(ks.Close)
	return ks
}

func (ks *keyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ks.mu.Lock()
	ks.fetches = append(ks.fetches, time.Now())
	answer := ks.answer
	ks.mu.Unlock()
	answer(w, r)
}

func (ks *keyServer) set(answer http.HandlerFunc) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.answer = answer
}

// times is when each fetch came in.
func (ks *keyServer) times() []time.Time {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	return slices.Clone(ks.fetches)
}

func (ks *keyServer) count() int { return len(ks.times()) }

// serveKeys answers with a set of these keys.
func serveKeys(t testing.TB, keys ...any) http.HandlerFunc {
	t.Helper()
	document := keySetJSON(t, keys...)
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, document) }
}

// hang answers nothing until the caller has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// newTestServer is a test server that has loaded ks, and fetches it every so often.
func (ks *keyServer) newTestServer(t testing.TB, every time.Duration) *testServer {
	t.Helper()
	ts := newTestServer(t, map[string]string{"JWKS_URL": ks.URL}, func(s *server) { s.verifier.keys.every = every })
	waitFor(t, 5*time.Second, "the key set", ts.verifier.keys.loaded)
	return ts
}

// askAgain lets the next unknown key id have the set fetched, as if 30 s had gone by.
func (ts *testServer) askAgain() {
	k := ts.verifier.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = k.asked.Add(-unknownEvery)
}

func TestKeySetRotation(t *testing.T) {
	before, after := newTestKey(t, "before", jose.ES256), newTestKey(t, "after", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, before.public()))
	overFile := newKeySetServer(t, nil, before.public())
	tests := []struct {
		name   string
		ts     *testServer
		rotate func()
	}{
		{"http", ks.newTestServer(t, time.Hour), func() { ks.set(serveKeys(t, before.public(), after.public())) }},
		{"file", overFile, func() { writeKeySet(t, overFile.jwks, before, after) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			old, fresh := before.sign(t, goodClaims()), after.sign(t, goodClaims())
			tt.ts.checkOutcome(t, tt.ts.post(t, old, goodBody), accepted, "")
			tt.rotate()
			for name, token := range map[string]string{"old": old, "new": fresh} {
				start := time.Now()
				tt.ts.checkOutcome(t, tt.ts.post(t, token, goodBody), accepted, "")
				if d := time.Since(start); d > time.Second {
					t.Errorf("%s token after the rotation: %s, want 1 s at most", name, d)
				}
			}
		})
	}
}

// All callers change over to a new key at once: they wait for one fetch.
func TestKeySetRotationTogether(t *testing.T) {
	before, after := newTestKey(t, "before", jose.ES256), newTestKey(t, "after", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, before.public()))
	ts := ks.newTestServer(t, time.Hour)
	rotated, release := serveKeys(t, before.public(), after.public()), make(chan struct{})
	ks.set(func(w http.ResponseWriter, r *http.Request) {
		<-release
		rotated(w, r)
	})
	token := after.sign(t, goodClaims())
	answers := make([]answer, 20)
	var callers sync.WaitGroup
	for i := range answers {
		callers.Go(func() { answers[i] = ts.post(t, token, goodBody) })
	}
	waitFor(t, time.Second, "all requests", func() bool { return ts.inFlight.Load() == int64(len(answers)) })
	close(release)
	callers.Wait()
	for _, a := range answers {
		ts.checkOutcome(t, a, accepted, "")
	}
	if n := ks.count(); n != 2 {
		t.Errorf("%d fetches, want 2: at start and for the new key", n)
	}
}

func TestKeySetRemoval(t *testing.T) {
	stays, goes := newTestKey(t, "stays", jose.ES256), newTestKey(t, "goes", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, stays.public(), goes.public()))
	ts := ks.newTestServer(t, 20*time.Millisecond)
	token := goes.sign(t, goodClaims())
	ts.checkOutcome(t, ts.post(t, token, goodBody), accepted, "")
	ks.set(serveKeys(t, stays.public()))
	waitFor(t, 5*time.Second, "the key to go", func() bool { return ts.post(t, token, goodBody).status != 200 })
	ts.checkOutcome(t, ts.post(t, token, goodBody), badToken, "no key of the set")
	ts.checkOutcome(t, ts.post(t, stays.sign(t, goodClaims()), goodBody), accepted, "")

	// A file that is gone takes no key with it.
	t.Run("file", func(t *testing.T) {
		ts := newTestServer(t, nil, func(s *server) { s.verifier.keys.every = 20 * time.Millisecond })
		writeKeySet(t, ts.jwks, ecKey())
		waitFor(t, 5*time.Second, "the keys to go", func() bool { return len(*ts.verifier.keys.keys.Load()) == 1 })
		ts.checkOutcome(t, ts.post(t, edKey().sign(t, goodClaims()), goodBody), badToken, "no key of the set")
		if err := os.Remove(ts.jwks); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 5*time.Second, "the failed look", func() bool { return strings.Contains(ts.log.String(), "fetching key set failed") })
		ts.checkOutcome(t, ts.post(t, ts.token(t), goodBody), accepted, "")
	})
}

// Only an unknown kid asks for a fetch.
func TestKeySetNoFetch(t *testing.T) {
	good := newTestKey(t, "good", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, good.public()))
	ts := ks.newTestServer(t, time.Hour)
	claims := payload("")
	ts.checkTokens(t, []tokenCase{
		{"another key under a known kid", newTestKey(t, "good", jose.ES256).sign(t, goodClaims()), badToken, "bad signature"},
		{"another algorithm under a known kid", newTestKey(t, "good", jose.EdDSA).sign(t, goodClaims()), badToken, "no key of the set"},
		{"no kid", newTestKey(t, "", jose.ES256).raw(t, `{"alg":"ES256"}`, claims), badToken, "bad signature"},
		{"no kid and no key", newTestKey(t, "", jose.EdDSA).raw(t, `{"alg":"EdDSA"}`, claims), badToken, "no key of the set"},
		{"unknown kid, algorithm not allowed", hs256(`{"alg":"HS256","kid":"x"}`, []byte("secret")), badToken, "algorithm"},
		{"unknown kid, no signature", b64(`{"alg":"none","kid":"x"}`) + "." + b64(claims) + ".", badToken, "algorithm"},
		{"expired", good.sign(t, with(map[string]any{"exp": 1})), badToken, "expired"},
		{"no token at all", "a.b.c", badToken, "header"},
		{"good", good.sign(t, goodClaims()), accepted, ""},
	})
	if n := ks.count(); n != 1 {
		t.Errorf("%d fetches, want the one at start", n)
	}
}

func TestKeySetUnknownKids(t *testing.T) {
	good := newTestKey(t, "good", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, good.public()))
	ts := ks.newTestServer(t, time.Hour)
	times := make([]time.Duration, 200)
	for i := range times {
		token := good.raw(t, fmt.Sprintf(`{"alg":"ES256","kid":"kid-%d"}`, i), payload(""))
		start := time.Now()
		a := ts.post(t, token, goodBody)
		times[i] = time.Since(start)
		wantError(t, a, 401, "unauthorized")
	}
	rest := times[1:] // the first one waited for the fetch
	slices.Sort(rest)
	// The median tells the cost; the slowest, on a busy machine too, that none waited.
	if median, slowest := rest[len(rest)/2], rest[len(rest)-1]; median > 50*time.Millisecond || slowest > 900*time.Millisecond {
		t.Errorf("unknown kids refused after %s, the slowest after %s, want 50 ms and no waiting", median, slowest)
	}
	if n := ks.count(); n != 2 {
		t.Errorf("%d fetches, want 2: at start and for the first unknown kid", n)
	}
	// A key that is published now has to wait for the 30 s, and no longer.
	late := newTestKey(t, "late", jose.ES256)
	ks.set(serveKeys(t, good.public(), late.public()))
	ts.checkOutcome(t, ts.post(t, late.sign(t, goodClaims()), goodBody), badToken, "no key of the set")
	ts.askAgain()
	ts.checkOutcome(t, ts.post(t, late.sign(t, goodClaims()), goodBody), accepted, "")
	if n := ks.count(); n != 3 {
		t.Errorf("%d fetches, want 3: 30 s have gone by", n)
	}
}

func TestKeySetServerHangs(t *testing.T) {
	t.Parallel()
	good := newTestKey(t, "good", jose.ES256)
	ks := newKeyServer(t, serveKeys(t, good.public()))
	ts := ks.newTestServer(t, time.Hour)
	ks.set(hang)
	unknown := newTestKey(t, "unknown", jose.ES256).sign(t, goodClaims())
	var waited time.Duration
	var a answer
	var caller sync.WaitGroup
	caller.Go(func() {
		start := time.Now()
		a = ts.post(t, unknown, goodBody)
		waited = time.Since(start)
	})
	waitFor(t, 5*time.Second, "the fetch", func() bool { return ks.count() == 2 })
	for range 5 {
		start := time.Now()
		ts.checkOutcome(t, ts.post(t, good.sign(t, goodClaims()), goodBody), accepted, "")
		if d := time.Since(start); d > 900*time.Millisecond {
			t.Errorf("known kid while the key server hangs: %s", d)
		}
	}
	caller.Wait()
	ts.checkOutcome(t, a, badToken, "no key of the set")
	if waited < 900*time.Millisecond || waited > 2*time.Second {
		t.Errorf("unknown kid while the key server hangs: refused after %s, want 1 s", waited)
	}
	// The next one need not wait: that fetch has had its second.
	start := time.Now()
	ts.checkOutcome(t, ts.post(t, unknown, goodBody), badToken, "no key of the set")
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("second unknown kid while the key server hangs: refused after %s", d)
	}
}

// Once there is a good set, nothing that the key server does takes it away.
func TestKeySetBadRefresh(t *testing.T) {
	good, thief := newTestKey(t, "good", jose.ES256), newTestKey(t, "thief", jose.ES256)
	trap := newKeyServer(t, serveKeys(t, thief.public()))
	padded := func(bytes int) http.HandlerFunc {
		set := keySetJSON(t, thief.public())
		return func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, set+strings.Repeat(" ", bytes-len(set)))
		}
	}
	status := func(code int) http.HandlerFunc {
		set := serveKeys(t, thief.public())
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			set(w, r)
		}
	}
	text := func(document string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, document) }
	}
	jwk, err := json.Marshal(thief.public())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		answer http.HandlerFunc
		cause  string
	}{
		{"500", status(500), "status 500"},
		{"404", status(404), "status 404"},
		{"203", status(203), "status 203"},
		{"redirect", http.RedirectHandler(trap.URL, http.StatusFound).ServeHTTP, "status 302"},
		{"connection cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"answer cut", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, keySetJSON(t, thief.public()))
		}, "EOF"},
		{"1 MiB and one", padded(1<<20 + 1), "more than 1048576 bytes"},
		{"2 MiB", padded(2 << 20), "more than 1048576 bytes"},
		{"HTML", text("<!DOCTYPE html><title>Sign in</title>"), "not a JSON Web Key Set"},
		{"nothing", text(""), "not a JSON Web Key Set"},
		{"half a set", text(`{"keys":[`), "not a JSON Web Key Set"},
		{"two sets", text(keySetJSON(t, thief.public()) + keySetJSON(t)), "not a JSON Web Key Set"},
		{"a string for keys", text(`{"keys":"none"}`), "not a JSON Web Key Set"},
		{"null", text(`null`), "no usable key"},
		{"no keys", text(`{}`), "no usable key"},
		{"keys null", text(`{"keys":null}`), "no usable key"},
		{"keys empty", text(`{"keys":[]}`), "no usable key"},
		{"one key without a set", text(string(jwk)), "no usable key"},
		{"no key that fits", text(keySetJSON(t, newTestKey(t, "p521", jose.ES512).public())), "no usable key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ks := newKeyServer(t, serveKeys(t, good.public()))
			ts := ks.newTestServer(t, 50*time.Millisecond)
			ks.set(tt.answer)
			waitFor(t, 5*time.Second, "the failed fetch", func() bool { return strings.Contains(ts.log.String(), "fetching key set failed") })
			if line := ts.log.line(t, "msg", "fetching key set failed"); !strings.Contains(line["cause"].(string), tt.cause) {
				t.Errorf("logged cause = %q, want %q", line["cause"], tt.cause)
			}
			ts.checkOutcome(t, ts.post(t, good.sign(t, goodClaims()), goodBody), accepted, "")
			ts.checkOutcome(t, ts.post(t, thief.sign(t, goodClaims()), goodBody), badToken, "no key of the set")
			wantReady(t, ts)
			// It goes on as before once the set is there again.
			ks.set(serveKeys(t, good.public(), thief.public()))
			waitFor(t, 5*time.Second, "both keys", func() bool { return len(*ts.verifier.keys.keys.Load()) == 2 })
		})
	}
	if n := trap.count(); n != 0 {
		t.Errorf("%d requests to where the redirect leads, want none", n)
	}
	t.Run("1 MiB", func(t *testing.T) {
		ks := newKeyServer(t, padded(1<<20))
		ts := ks.newTestServer(t, time.Hour)
		ts.checkOutcome(t, ts.post(t, thief.sign(t, goodClaims()), goodBody), accepted, "")
	})
}

func wantReady(t testing.TB, ts *testServer) {
	t.Helper()
	if a := ts.do(t, "GET", "/readyz", nil, nil); a.status != 200 {
		t.Errorf("GET /readyz = %d %s, want 200", a.status, a.body)
	}
}

// A fetch has 5 s, from its first byte to its last.
func TestKeySetTooSlow(t *testing.T) {
	t.Parallel()
	ks := newKeyServer(t, func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for r.Context().Err() == nil {
			<-tick.C
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
		}
	})
	u, err := url.Parse(ks.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // so that the test ends in any case
	defer cancel()
	start := time.Now()
	document, err := newKeySet(u, knownAlgorithms, nil).fetch(ctx)
	if d := time.Since(start); err == nil || d < 4500*time.Millisecond || d > 7*time.Second {
		t.Errorf("fetch of a set that never ends = %d bytes, %v after %s, want an error after 5 s", len(document), err, d)
	}
}

func TestKeySetSkipsKeys(t *testing.T) {
	good, private := newTestKey(t, "good", jose.ES256), newTestKey(t, "private", jose.ES256)
	privateRSA, privateEd := testKey{"private-rsa", jose.RS256, rsaKey().priv}, testKey{"private-ed", jose.EdDSA, edKey().priv}
	withPrivate := func(k testKey) jose.JSONWebKey {
		return jose.JSONWebKey{Key: k.priv, KeyID: k.kid, Algorithm: string(k.alg), Use: "sig"}
	}
	secret := bytes.Repeat([]byte("s"), 32)
	skipped := []any{
		nil, 5, "key", []any{}, map[string]any{},
		map[string]any{"kty": "EC", "kid": "half", "crv": "P-256", "x": "AA"},
		map[string]any{"kty": "EC", "kid": "off-curve", "crv": "P-256", "x": b64(secret), "y": b64(secret)},
		map[string]any{"kty": "EC", "kid": "k1", "crv": "secp256k1", "x": b64(secret), "y": b64(secret)},
		map[string]any{"kty": "RSA", "kid": "rsa", "n": "not base64!", "e": "AQAB"},
		map[string]any{"kty": "OKP", "kid": "x25519", "crv": "X25519", "x": b64(secret)},
		map[string]any{"kty": "new", "kid": "good"},
		map[string]any{"kty": "oct", "kid": "oct", "alg": "HS256", "k": b64(secret)},
		withPrivate(private), withPrivate(privateRSA), withPrivate(privateEd),
	}
	ts := newKeySetServer(t, nil, append(skipped, good.public())...)
	waitFor(t, 5*time.Second, "the log line", func() bool { return strings.Contains(ts.log.String(), "key set loaded") })
	if line := ts.log.line(t, "msg", "key set loaded"); line["keys"] != 1.0 || line["skipped"] != float64(len(skipped)) {
		t.Errorf("log has %v keys and %v skipped, want 1 and %d", line["keys"], line["skipped"], len(skipped))
	}
	ts.checkTokens(t, []tokenCase{
		{"good", good.sign(t, goodClaims()), accepted, ""},
		{"private EC", private.sign(t, goodClaims()), badToken, "no key of the set"},
		{"private RSA", privateRSA.sign(t, goodClaims()), badToken, "no key of the set"},
		{"private Ed25519", privateEd.sign(t, goodClaims()), badToken, "no key of the set"},
		{"symmetric", hs256(`{"alg":"HS256","kid":"oct"}`, secret), badToken, "algorithm"},
		{"symmetric in disguise", hs256(`{"alg":"ES256","kid":"oct"}`, secret), badToken, "no key of the set"},
	})
}

func TestKeySetKidless(t *testing.T) {
	one, forRS, forPS := newTestKey(t, "one", jose.ES256), newTestKey(t, "", jose.RS256), testKey{"ps", jose.PS256, rsaKey().priv}
	ed1, ed2 := newTestKey(t, "ed1", jose.EdDSA), newTestKey(t, "ed2", jose.EdDSA)
	ts := newKeySetServer(t, nil, one.public(), forRS.public(), forPS.public(), ed1.public(), ed2.public())
	claims := payload("")
	ps, err := signToken(jose.PS256, forPS.priv, "", goodClaims())
	if err != nil {
		t.Fatal(err)
	}
	ts.checkTokens(t, []tokenCase{
		{"one key", one.raw(t, `{"alg":"ES256"}`, claims), accepted, ""},
		{"one key, kid empty", one.raw(t, `{"alg":"ES256","kid":""}`, claims), accepted, ""},
		{"one of two RSA keys is for RS256", forRS.raw(t, `{"alg":"RS256"}`, claims), accepted, ""},
		{"the other is for PS256", ps, accepted, ""},
		{"two keys", ed1.raw(t, `{"alg":"EdDSA"}`, claims), badToken, "no key of the set"},
		{"two keys, kid empty", ed2.raw(t, `{"alg":"EdDSA","kid":""}`, claims), badToken, "no key of the set"},
		{"two keys, kid given", ed2.raw(t, ed2.header(""), claims), accepted, ""},
	})
}

// Without a key set no token can be told good from bad: that is ours to mend, and the
// caller may try again.
func TestKeySetNeverLoaded(t *testing.T) {
	t.Parallel()
	good := newTestKey(t, "good", jose.ES256)
	tests := []struct {
		name  string
		start func(t *testing.T) (jwksURL string, comeUp func())
	}{
		{"500", func(t *testing.T) (string, func()) {
			ks := newKeyServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
			return ks.URL, func() { ks.set(serveKeys(t, good.public())) }
		}},
		{"nobody listens", func(t *testing.T) (string, func()) {
			addr := "127.0.0.1:" + freePort()
			return "http://" + addr, func() {
				listener, err := net.Listen("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				late := httptest.NewUnstartedServer(serveKeys(t, good.public()))
				late.Listener.Close()
				late.Listener = listener
				late.Start()
				t.Cleanup(late.Close)
			}
		}},
		{"no file", func(t *testing.T) (string, func()) {
			file := filepath.Join(t.TempDir(), "keys.json")
			return "file://" + file, func() { writeKeySet(t, file, good) }
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			jwksURL, comeUp := tt.start(t)
			ts := newTestServer(t, map[string]string{"JWKS_URL": jwksURL})
			waitFor(t, 5*time.Second, "the failed fetch", func() bool { return strings.Contains(ts.log.String(), "fetching key set failed") })
			for name, token := range map[string]string{
				"good":        good.sign(t, goodClaims()),
				"unknown kid": newTestKey(t, "x", jose.ES256).sign(t, goodClaims()),
			} {
				start := time.Now()
				a := ts.post(t, token, goodBody)
				if d := time.Since(start); d > 900*time.Millisecond {
					t.Errorf("%s: answered after %s, want at once", name, d)
				}
				ts.checkOutcome(t, a, outcome{503, "unavailable", ""}, "key set not loaded")
			}
			ts.checkOutcome(t, ts.post(t, "", goodBody), noToken, "no bearer token")
			e := wantError(t, ts.do(t, "GET", "/readyz", nil, nil), 503, "unavailable")
			if !strings.Contains(e.Message, "key set") || strings.Contains(e.Message, "redis") {
				t.Errorf("message of /readyz = %q, want it to name the key set alone", e.Message)
			}
			ts.wantNoKeys(t)

			comeUp()
			waitFor(t, 3*time.Second, "the key set", ts.verifier.keys.loaded)
			ts.checkOutcome(t, ts.post(t, good.sign(t, goodClaims()), goodBody), accepted, "")
			wantReady(t, ts)
		})
	}
}

// Tries for the first set come after 1 s, then less often. Afterwards an unknown kid
// has its fetch: those at start do not count.
func TestKeySetRetries(t *testing.T) {
	t.Parallel()
	good, late := newTestKey(t, "good", jose.ES256), newTestKey(t, "late", jose.ES256)
	failing := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }
	ks := newKeyServer(t, failing)
	ts := newTestServer(t, map[string]string{"JWKS_URL": ks.URL})
	waitFor(t, 5*time.Second, "the second try", func() bool { return ks.count() == 2 })
	ks.set(serveKeys(t, good.public()))
	waitFor(t, 5*time.Second, "the key set", ts.verifier.keys.loaded)
	times := ks.times()
	if len(times) != 3 {
		t.Fatalf("%d fetches, want 3", len(times))
	}
	first, second := times[1].Sub(times[0]), times[2].Sub(times[1])
	if first < 900*time.Millisecond || first > 1900*time.Millisecond || second < 1500*time.Millisecond {
		t.Errorf("retries after %s and %s, want 1 s, then more", first, second)
	}
	ks.set(serveKeys(t, good.public(), late.public()))
	ts.checkOutcome(t, ts.post(t, late.sign(t, goodClaims()), goodBody), accepted, "")
}
