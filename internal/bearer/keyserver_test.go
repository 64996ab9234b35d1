package bearer_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// keyServer is an authorization server's key set over HTTP. A test may change its answer while it runs.
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
	return serveText(keySetJSON(t, keys...))
}

func serveText(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func serveStatus(code int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text)
	}
}

// hang answers nothing until the caller has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func parseURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	testkit.Must(t, err)
	return u
}

// load is a Verifier that has loaded ks and fetches it every so often.
func (ks *keyServer) load(t testing.TB, every time.Duration) *verifier {
	t.Helper()
	v := newVerifier(config(parseURL(t, ks.URL)))
	v.SetEvery(every)
	return v.load(t)
}

// wantFetches checks how often the set was fetched since the start.
func (ks *keyServer) wantFetches(t testing.TB, want int) {
	t.Helper()
	if n := ks.count(); n != want {
		t.Errorf("%d fetches, want %d", n, want)
	}
}

// waitForFailure waits until the log tells of a fetch that failed, and returns the cause.
func (v *verifier) waitForFailure(t testing.TB) string {
	t.Helper()
	const failed = "fetching key set failed"
	testkit.WaitFor(t, 5*time.Second, "the failed fetch", func() bool { return v.log.Has(failed) })
	cause, _ := v.log.Line(t, "msg", failed)["cause"].(string)
	return cause
}
