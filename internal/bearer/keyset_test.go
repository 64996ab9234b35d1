package bearer_test

import (
	"context"
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
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

func TestKeySetRotation(t *testing.T) {
	before, after := newES256(t, "before"), newES256(t, "after")
	ks := newKeyServer(t, serveKeys(t, before.Public()))
	file := keyFile(t, before.Public())
	for _, tt := range []struct {
		name   string
		v      *verifier
		rotate func()
	}{
		{"http", ks.load(t, time.Hour), func() { ks.set(serveKeys(t, before.Public(), after.Public())) }},
		{"file", newVerifier(config(file)).load(t), func() { testkit.WriteKeySet(t, file.Path, before, after) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, fresh := sign(t, before), sign(t, after)
			tt.v.accept(t, old)
			tt.rotate()
			for name, token := range map[string]string{"old": old, "new": fresh} {
				start := time.Now()
				tt.v.accept(t, token)
				if d := time.Since(start); d > time.Second {
					t.Errorf("%s token after the rotation: %s, want 1 s at most", name, d)
				}
			}
		})
	}
}

// All callers change over to a new key at once, and have it by one fetch.
func TestKeySetRotationTogether(t *testing.T) {
	before, after := newES256(t, "before"), newES256(t, "after")
	ks := newKeyServer(t, serveKeys(t, before.Public()))
	v := ks.load(t, time.Hour)
	rotated, release := serveKeys(t, before.Public(), after.Public()), make(chan struct{})
	ks.set(func(w http.ResponseWriter, r *http.Request) {
		<-release
		rotated(w, r)
	})
	token := sign(t, after)
	var begun atomic.Int64
	var callers sync.WaitGroup
	const count = 20
	for range count {
		callers.Go(func() {
			begun.Add(1)
			if got, err := v.Verify(token); got.Client != "acme" || err != nil {
				t.Errorf("Verify of a token by the new key = %+v, %v, want %+v", got, err, acme)
			}
		})
	}
	testkit.WaitFor(t, 5*time.Second, "all callers and a fetch",
		func() bool { return begun.Load() == count && ks.count() == 2 })
	close(release)
	callers.Wait()
	ks.wantFetches(t, 2) // at start and for the new key
}

func TestKeySetRemoval(t *testing.T) {
	stays, goes := newES256(t, "stays"), newES256(t, "goes")
	ks := newKeyServer(t, serveKeys(t, stays.Public(), goes.Public()))
	v := ks.load(t, 20*time.Millisecond)
	token := sign(t, goes)
	v.accept(t, token) // and is remembered
	ks.set(serveKeys(t, stays.Public()))
	testkit.WaitFor(t, 5*time.Second, "the key to go", func() bool { return v.KeyCount() == 1 })
	v.refuse(t, token, noKey)
	v.accept(t, sign(t, stays))

	t.Run("file", func(t *testing.T) {
		file := keyFile(t, stays.Public(), goes.Public())
		v := newVerifier(config(file))
		v.SetEvery(20 * time.Millisecond)
		v.load(t)
		v.accept(t, token)
		testkit.WriteKeySet(t, file.Path, stays)
		testkit.WaitFor(t, 5*time.Second, "the key to go", func() bool { return v.KeyCount() == 1 })
		v.refuse(t, token, noKey)
		// A file that is gone takes no key with it.
		testkit.Must(t, os.Remove(file.Path))
		v.waitForFailure(t)
		v.accept(t, sign(t, stays))
	})
}

// Only an unknown kid asks for a fetch.
func TestKeySetNoFetch(t *testing.T) {
	good := newES256(t, "good")
	ks := newKeyServer(t, serveKeys(t, good.Public()))
	v := ks.load(t, time.Hour)
	claims := payload(t, "")
	otherAlg, noID := testkit.NewKey(t, "good", jose.EdDSA), testkit.NewKey(t, "", jose.EdDSA)
	v.check(t, []tokenTest{
		{"another key under a known kid", sign(t, newES256(t, "good")), badSignature},
		{"another algorithm under a known kid", sign(t, otherAlg), noKey},
		{"no kid", raw(t, newES256(t, ""), `{"alg":"ES256"}`, claims), badSignature},
		{"no kid and no key", raw(t, noID, `{"alg":"EdDSA"}`, claims), noKey},
		{"unknown kid, algorithm not allowed", hs256(`{"alg":"HS256","kid":"x"}`, claims, []byte("secret")), malformed},
		{"unknown kid, no signature", b64(`{"alg":"none","kid":"x"}`) + "." + b64(claims) + ".", malformed},
		{"expired", testkit.Sign(t, good, testkit.With(map[string]any{"exp": 1})), expired},
		{"no token at all", "a.b.c", notBase64},
		{"good", sign(t, good), accepted},
	})
	ks.wantFetches(t, 1) // at start
}

func TestKeySetUnknownKids(t *testing.T) {
	good := newES256(t, "good")
	ks := newKeyServer(t, serveKeys(t, good.Public()))
	v := ks.load(t, time.Hour)
	times := make([]time.Duration, 200)
	for i := range times {
		token := raw(t, good, fmt.Sprintf(`{"alg":"ES256","kid":"kid-%d"}`, i), payload(t, ""))
		start := time.Now()
		_, err := v.Verify(token)
		times[i] = time.Since(start)
		if textOf(err) != noKey {
			t.Errorf("Verify of a token with an unknown kid = %v, want %q", err, noKey)
		}
	}
	rest := times[1:] // the first one waited for the fetch
	slices.Sort(rest)
	// The median tells the cost. The slowest tells, on a busy machine too, that none waited.
	median, slowest := rest[len(rest)/2], rest[len(rest)-1]
	if median > 50*time.Millisecond || slowest > 900*time.Millisecond {
		t.Errorf("unknown kids refused after %s, the slowest after %s, want 50 ms and no waiting", median, slowest)
	}
	ks.wantFetches(t, 2) // at start and for the first unknown kid
	// A key that is published now has to wait for the 30 s, and no longer.
	late := newES256(t, "late")
	ks.set(serveKeys(t, good.Public(), late.Public()))
	v.refuse(t, sign(t, late), noKey)
	v.AskAgain()
	v.accept(t, sign(t, late))
	ks.wantFetches(t, 3)
}

func TestKeySetServerHangs(t *testing.T) {
	t.Parallel()
	good := newES256(t, "good")
	ks := newKeyServer(t, serveKeys(t, good.Public()))
	v := ks.load(t, time.Hour)
	ks.set(hang)
	unknown := sign(t, newES256(t, "unknown"))
	var waited time.Duration
	var refusal error
	var caller sync.WaitGroup
	caller.Go(func() {
		start := time.Now()
		_, refusal = v.Verify(unknown)
		waited = time.Since(start)
	})
	testkit.WaitFor(t, 5*time.Second, "the fetch", func() bool { return ks.count() == 2 })
	for range 5 {
		start := time.Now()
		if got, err := v.Verify(sign(t, good)); got.Client != "acme" || err != nil {
			t.Errorf("Verify with a known kid while the key server hangs = %+v, %v, want %+v", got, err, acme)
		}
		if d := time.Since(start); d > 900*time.Millisecond {
			t.Errorf("known kid while the key server hangs: %s", d)
		}
	}
	caller.Wait()
	if textOf(refusal) != noKey || waited < 900*time.Millisecond || waited > 2*time.Second {
		t.Errorf("unknown kid while the key server hangs: %v after %s, want %q after %s",
			refusal, waited, noKey, bearer.MaxWait)
	}
	// The next one need not wait, since that fetch has had its second.
	start := time.Now()
	v.refuse(t, unknown, noKey)
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("second unknown kid while the key server hangs: refused after %s", d)
	}
}

// Once there is a good set, nothing that the key server does takes it away.
func TestKeySetBadRefresh(t *testing.T) {
	good, thief := newES256(t, "good"), newES256(t, "thief")
	set := keySetJSON(t, thief.Public())
	trap := newKeyServer(t, serveText(set))
	padded := func(bytes int) http.HandlerFunc { return serveText(set + strings.Repeat(" ", bytes-len(set))) }
	const notSet, unusable, tooBig = "not a JSON Web Key Set", "no usable key in the set", "more than 1048576 bytes"
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		cause  string
	}{
		{"500", serveStatus(500, set), "status 500"},
		{"404", serveStatus(404, set), "status 404"},
		{"203", serveStatus(203, set), "status 203"},
		{"redirect", http.RedirectHandler(trap.URL, http.StatusFound).ServeHTTP, "status 302"},
		{"connection cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"answer cut", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, set)
		}, "unexpected EOF"},
		{"1 MiB and one", padded(1<<20 + 1), tooBig},
		{"2 MiB", padded(2 << 20), tooBig},
		{"HTML", serveText("<!DOCTYPE html><title>Sign in</title>"), notSet},
		{"nothing", serveText(""), notSet},
		{"half a set", serveText(`{"keys":[`), notSet},
		{"two sets", serveText(set + keySetJSON(t)), notSet},
		{"a string for keys", serveText(`{"keys":"none"}`), notSet},
		{"null", serveText(`null`), unusable},
		{"no keys", serveText(`{}`), unusable},
		{"keys null", serveText(`{"keys":null}`), unusable},
		{"keys empty", serveText(`{"keys":[]}`), unusable},
		{"one key without a set", serveText(asJSON(t, thief.Public())), unusable},
		{"no key that fits", serveKeys(t, testkit.NewKey(t, "p521", jose.ES512).Public()),
			unusable + `; "p521": its type, size and alg fit none of JWT_ALGORITHMS`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ks := newKeyServer(t, serveKeys(t, good.Public()))
			u := parseURL(t, ks.URL)
			u.User, u.RawQuery = url.UserPassword("us", "SECRET"), "token=SECRET"
			v := newVerifier(config(u))
			v.SetEvery(50 * time.Millisecond)
			v.load(t)
			ks.set(tt.answer)
			if cause := v.waitForFailure(t); cause != tt.cause {
				t.Errorf("logged cause = %q, want %q", cause, tt.cause)
			}
			if s := v.Stats(); s.KeySetFresh || s.KeySetFetched == 0 {
				t.Errorf("Stats() = %+v, want a set that was fetched and is not fresh", s)
			}
			v.accept(t, sign(t, good))
			v.refuse(t, sign(t, thief), noKey)
			if !v.Ready() {
				t.Error("Ready() = false after a refresh that failed")
			}
			// It goes on as before once the set is there again.
			ks.set(serveKeys(t, good.Public(), thief.Public()))
			testkit.WaitFor(t, 5*time.Second, "both keys", func() bool { return v.KeyCount() == 2 && v.Stats().KeySetFresh })
			v.accept(t, sign(t, thief))
			if v.log.Has("SECRET") {
				t.Errorf("log has a credential of the key set's URL:\n%s", v.log)
			}
		})
	}
	trap.wantFetches(t, 0)
	t.Run("1 MiB", func(t *testing.T) {
		newKeyServer(t, padded(1<<20)).load(t, time.Hour).accept(t, sign(t, thief))
	})
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
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // so that the test ends in any case
	defer cancel()
	start := time.Now()
	document, err := newVerifier(config(parseURL(t, ks.URL))).Fetch(ctx)
	if d := time.Since(start); err == nil || d < 4500*time.Millisecond || d > 7*time.Second {
		t.Errorf("fetch of a set that never ends = %d bytes, %v after %s, want an error after 5 s", len(document), err, d)
	}
}

// Without a key set no token can be told good from bad, so nobody is told that theirs is bad.
func TestKeySetNeverLoaded(t *testing.T) {
	t.Parallel()
	good := newES256(t, "good")
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (keySet *url.URL, comeUp func())
	}{
		{"500", func(t *testing.T) (*url.URL, func()) {
			ks := newKeyServer(t, serveStatus(500, ""))
			return parseURL(t, ks.URL), func() { ks.set(serveKeys(t, good.Public())) }
		}},
		{"nobody listens", func(t *testing.T) (*url.URL, func()) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			testkit.Must(t, err)
			addr := listener.Addr().String()
			testkit.Must(t, listener.Close())
			return parseURL(t, "http://"+addr), func() {
				listener, err := net.Listen("tcp", addr)
				testkit.Must(t, err)
				late := httptest.NewUnstartedServer(serveKeys(t, good.Public()))
				late.Listener.Close()
				late.Listener = listener
				late.Start()
				t.Cleanup(late.Close)
			}
		}},
		{"no file", func(t *testing.T) (*url.URL, func()) {
			file := filepath.Join(t.TempDir(), "keys.json")
			return &url.URL{Scheme: "file", Path: file}, func() { testkit.WriteKeySet(t, file, good) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			keySet, comeUp := tt.start(t)
			v := newVerifier(config(keySet))
			v.start(t)
			v.waitForFailure(t)
			token, unknown := sign(t, good), sign(t, newES256(t, "x"))
			start := time.Now()
			v.refuse(t, token, bearer.ErrNoKeys.Error())
			v.refuse(t, unknown, bearer.ErrNoKeys.Error())
			v.refuse(t, "a.b.c", notBase64) // for this no key is needed
			if d := time.Since(start); d > 900*time.Millisecond {
				t.Errorf("answers without a key set after %s, want at once", d)
			}
			if _, err := v.Verify(token); err != bearer.ErrNoKeys {
				t.Errorf("Verify without a key set = %v, want ErrNoKeys", err)
			}
			if v.Ready() {
				t.Error("Ready() = true without a key set")
			}
			if s, want := v.Stats(), (bearer.Stats{Refused: 2}); s != want {
				t.Errorf("Stats() = %+v, want %+v", s, want)
			}

			comeUp()
			testkit.WaitFor(t, 3*time.Second, "the key set", v.Ready)
			v.accept(t, token)
			testkit.WaitFor(t, time.Second, "a fresh set", func() bool { return v.Stats().KeySetFresh })
		})
	}
}

// Tries for the first set come after 1 s, then less often. Afterwards an unknown kid has its fetch, since those at
// start do not count.
func TestKeySetRetries(t *testing.T) {
	t.Parallel()
	good, late := newES256(t, "good"), newES256(t, "late")
	ks := newKeyServer(t, serveStatus(503, ""))
	v := newVerifier(config(parseURL(t, ks.URL)))
	v.start(t)
	testkit.WaitFor(t, 5*time.Second, "the second try", func() bool { return ks.count() == 2 })
	ks.set(serveKeys(t, good.Public()))
	testkit.WaitFor(t, 5*time.Second, "the key set", v.Ready)
	times := ks.times()
	if len(times) != 3 {
		t.Fatalf("%d fetches, want 3", len(times))
	}
	first, second := times[1].Sub(times[0]), times[2].Sub(times[1])
	if first < 900*time.Millisecond || first > 1900*time.Millisecond || second < 1500*time.Millisecond {
		t.Errorf("retries after %s and %s, want 1 s, then more", first, second)
	}
	ks.set(serveKeys(t, good.Public(), late.Public()))
	v.accept(t, sign(t, late))
}
