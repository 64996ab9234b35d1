//go:build generated

package client

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	goahttp "goa.design/goa/v3/http"
	goa "goa.design/goa/v3/pkg"

	"authsession/e2e/compat/gen/auth"
	"authsession/e2e/compat/gen/http/auth/client"
)

func TestResult(t *testing.T) {
	t.Parallel()
	s := startService(t)
	before := time.Now()
	got, err := newClient(s.addr, http.DefaultClient).CreateSession(t.Context(), goodPayload())
	if err != nil {
		t.Fatal(err)
	}
	if got.AuthURL != authURL+"?sess_id="+got.SessionID || len(got.SessionID) < 22 || len(got.ID) != 26 {
		t.Errorf("result = %+v", got)
	}
	if lives := time.Unix(got.ExpiresAt, 0).Sub(before); lives < sessionTTL-time.Second || lives > sessionTTL+time.Minute {
		t.Errorf("the session lives %s, want %s", lives, sessionTTL)
	}
}

func TestCallersErrors(t *testing.T) {
	t.Parallel()
	s := startService(t)
	stalled, end := io.Pipe() // a body that never arrives
	t.Cleanup(func() { end.Close() })

	tests := []struct {
		name    string
		payload func(*auth.CreateSessionPayload)
		request func(*http.Request) // changes the generated client's request
		want    goa.ServiceError
	}{
		{name: "field", want: goa.ServiceError{Name: "bad_request"},
			payload: func(p *auth.CreateSessionPayload) { p.EndUserID = "with space" }},
		{name: "institution", want: goa.ServiceError{Name: "invalid_institution_id"},
			payload: func(p *auth.CreateSessionPayload) { p.InstitutionID = new("with space") }},
		{name: "permissions", want: goa.ServiceError{Name: "bad_request"},
			payload: func(p *auth.CreateSessionPayload) { p.Permissions = []string{"accounts", "accounts"} }},
		{name: "arrangement", want: goa.ServiceError{Name: "bad_request"},
			payload: func(p *auth.CreateSessionPayload) { p.ArrangementID = new("with space") }},
		{name: "another's key", want: goa.ServiceError{Name: "unauthorized"},
			payload: func(p *auth.CreateSessionPayload) {
				_, stranger, _ := ed25519.GenerateKey(nil)
				p.Token = sign(stranger, "api:user.write")
			}},
		{name: "scope", want: goa.ServiceError{Name: "forbidden"},
			payload: func(p *auth.CreateSessionPayload) { p.Token = sign(key, "api:user.read") }},
		{name: "path", want: goa.ServiceError{Name: "not_found"},
			request: func(r *http.Request) { r.URL.Path += "/" }},
		{name: "method", want: goa.ServiceError{Name: "method_not_allowed"},
			request: func(r *http.Request) { r.Method = http.MethodPut }},
		{name: "stalled body", want: goa.ServiceError{Name: "timeout", Timeout: true},
			request: func(r *http.Request) { r.Body, r.ContentLength = stalled, 100 }},
		{name: "size", want: goa.ServiceError{Name: "request_too_large"},
			payload: func(p *auth.CreateSessionPayload) {
				p.RedirectURI = new("https://acme.com/" + strings.Repeat("a", 64<<10))
			}},
		{name: "media type", want: goa.ServiceError{Name: "unsupported_media_type"},
			request: func(r *http.Request) { r.Header.Set("Content-Type", "application/xml") }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			payload := goodPayload()
			if test.payload != nil {
				test.payload(payload)
			}
			c := newClient(s.addr, doer(func(r *http.Request) (*http.Response, error) {
				if test.request != nil {
					test.request(r)
				}
				return http.DefaultClient.Do(r)
			}))
			s.wantError(t, c, payload, test.want)
		})
	}
}

func TestRedisFails(t *testing.T) {
	t.Parallel()
	s := startService(t)
	c := newClient(s.addr, http.DefaultClient)
	if _, err := c.CreateSession(t.Context(), goodPayload()); err != nil { // this also opens a connection to Redis
		t.Fatal(err)
	}
	s.redis.pause(t)
	s.wantError(t, c, goodPayload(), goa.ServiceError{Name: "timeout", Timeout: true, Temporary: true})
	s.redis.kill()
	s.wantError(t, c, goodPayload(), goa.ServiceError{Name: "unavailable", Temporary: true})
}

func TestRate(t *testing.T) {
	t.Parallel()
	clients := filepath.Join(t.TempDir(), "clients.json")
	if err := os.WriteFile(clients, []byte(`{"clients": {"acme": {"sessions_per_minute": 1}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startService(t, "CLIENTS_FILE="+clients)
	c := newClient(s.addr, http.DefaultClient)
	if _, err := c.CreateSession(t.Context(), goodPayload()); err != nil {
		t.Fatal(err)
	}
	s.wantError(t, c, goodPayload(), goa.ServiceError{Name: "too_many_requests", Temporary: true})
}

// A stand-in sends the response to a bug, because no request provokes one.
func TestFault(t *testing.T) {
	t.Parallel()
	standIn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.goa.error")
		w.Header().Set("goa-error", "fault")
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"fault":true,"id":"1","message":"something is wrong on our side","name":"fault",`+
			`"temporary":false,"timeout":false}`)
	}))
	defer standIn.Close()
	c := newClient(standIn.Listener.Addr().String(), http.DefaultClient)
	wantError(t, c, goodPayload(), goa.ServiceError{Name: "fault", Fault: true})
}

// wantError checks that a call fails with Goa's error type, and that the service's log has its ID.
func (s *service) wantError(t *testing.T, c *auth.Client, p *auth.CreateSessionPayload, want goa.ServiceError) {
	t.Helper()
	id := wantError(t, c, p, want)
	s.find(t, `"error_id":"(`+regexp.QuoteMeta(id)+`)"`)
}

func wantError(t *testing.T, c *auth.Client, p *auth.CreateSessionPayload, want goa.ServiceError) (id string) {
	t.Helper()
	_, err := c.CreateSession(t.Context(), p)
	got, ok := errors.AsType[*goa.ServiceError](err)
	if !ok {
		t.Fatalf("error = %T %v, want *goa.ServiceError", err, err)
	}
	if got.Name != want.Name || got.Timeout != want.Timeout || got.Temporary != want.Temporary || got.Fault != want.Fault {
		t.Errorf("error = %+v, want %+v", *got, want)
	}
	if got.ID == "" || got.Message == "" {
		t.Errorf("error = %+v without id or message", *got)
	}
	return got.ID
}

type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error) { return d(r) }

func newClient(addr string, d goahttp.Doer) *auth.Client {
	c := client.NewClient("http", addr, d, goahttp.RequestEncoder, goahttp.ResponseDecoder, false)
	return auth.NewClient(c.CreateSession())
}

func goodPayload() *auth.CreateSessionPayload {
	return &auth.CreateSessionPayload{
		Token:         sign(key, "api:user.write"),
		EndUserID:     "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB",
		InstitutionID: new("10"),
		RedirectURI:   new("https://acme.com/success"),
		CancelURI:     new("https://acme.com/cancel"),
		Permissions:   []string{"accounts", "balances"},
		ArrangementID: new("arr_2yRHN2ag2y4p8kCtm5DOeccZEXB"),
	}
}
