package main

import (
	_ "embed"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
)

const maxBody = 64 << 10 // bytes

// server answers requests. All its fields but the atomic ones are set before it does.
type server struct {
	verifier    *verifier
	store       *store
	log         *slog.Logger
	now         func() time.Time
	authURL     string // up to and with "sess_id="
	keyPrefix   string
	sessionTTL  time.Duration
	maxInFlight int64
	router      chi.Router

	requests requestMetrics
	created  atomic.Uint64 // sessions
	inFlight atomic.Int64  // requests in createSession
	draining atomic.Bool   // shutting down: not ready
}

// routes is the whole HTTP surface.
func (s *server) routes() http.Handler {
	r := chi.NewRouter()
	for _, path := range []string{"/auth/session", "/v1/auth/session"} {
		r.Post(path, s.handle(path, s.createSession))
	}
	for path, f := range map[string]handler{"/livez": s.live, "/readyz": s.ready, "/openapi.yaml": s.description} {
		r.Get(path, s.handle(path, f))
		r.Head(path, s.handle(path, f))
	}
	none := s.handle("", func(_ http.ResponseWriter, r *http.Request, _ *entry) error { return s.noRoute(r) })
	r.NotFound(none)
	r.MethodNotAllowed(none)
	s.router = r
	return r
}

// noRoute is 405 for a path that has other methods, else 404.
func (s *server) noRoute(r *http.Request) error {
	path := r.URL.EscapedPath() // as it was sent, like chi: /%61uth is not /auth
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if s.router.Match(chi.NewRouteContext(), method, path) {
			allow = append(allow, method)
		}
	}
	if allow == nil {
		return notFound()
	}
	return methodNotAllowed(strings.Join(allow, ", "))
}

// createSession is POST /auth/session. It checks in the contract's order, and the first
// check that fails answers.
func (s *server) createSession(w http.ResponseWriter, r *http.Request, e *entry) error {
	defer s.inFlight.Add(-1)
	if s.inFlight.Add(1) > s.maxInFlight {
		return unavailable("too many requests are in work", nil)
	}
	who, err := s.authenticate(r)
	if err != nil {
		return err
	}
	e.clientID = who.client
	if !who.hasScope {
		return forbidden()
	}
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	request, unknown, err := parseSessionRequest(body)
	e.unknown = unknown
	if err != nil {
		return err
	}
	record, secret := newSession(request, who.client, s.now(), s.sessionTTL)
	e.session = record.ID
	if err := s.store.put(sessionKey(s.keyPrefix, secret), record.encode(), record.ExpiresAt); timedOut(err) {
		return storeTimedOut(err)
	} else if err != nil {
		return unavailable("the session store is not available", err)
	}
	s.created.Add(1)
	answer := make([]byte, 0, 256)
	answer = appendString(append(answer, `{"auth_url":`...), s.authURL+secret)
	answer = strconv.AppendInt(append(answer, `,"expires_at":`...), record.ExpiresAt, 10)
	answer = appendString(append(answer, `,"id":`...), record.ID)
	answer = appendString(append(answer, `,"session_id":`...), secret)
	answer = append(answer, '}')
	w.Header()["Content-Type"] = []string{"application/json"}
	_, _ = w.Write(answer) // a caller that has gone: nobody holds the id
	return nil
}

// authenticate returns the bearer of the request's token (RFC 6750, section 2.1). A
// token anywhere but in the one Authorization header does not count.
func (s *server) authenticate(r *http.Request) (identity, error) {
	values := r.Header["Authorization"]
	if len(values) > 1 {
		return identity{}, badRequest("there must be one Authorization header")
	}
	credentials := strings.Join(values, "")
	end := strings.IndexAny(credentials, " \t")
	if end < 0 || !strings.EqualFold(credentials[:end], "Bearer") {
		return identity{}, unauthorized("Bearer", errors.New("no bearer token"))
	}
	const invalid = `Bearer error="invalid_token"`
	if credentials[end] != ' ' {
		return identity{}, unauthorized(invalid, errors.New("no single space before the token"))
	}
	who, err := s.verifier.verify(credentials[end+1:])
	if errors.Is(err, errNoKeys) {
		return identity{}, unavailable("tokens can't be checked yet", err)
	}
	if err != nil {
		return identity{}, unauthorized(invalid, err)
	}
	return who, nil
}

// checkMediaType takes JSON, which is also what a body without a type is.
func checkMediaType(h http.Header) error {
	const json = "application/json"
	given := strings.Join(h["Content-Type"], ",")
	media, _, _ := strings.Cut(given, ";")
	media = strings.TrimSpace(media)
	if given != "" && (len(media) != len(json) || !strings.EqualFold(media, json)) { // to EqualFold ſ, two bytes, is an s
		return unsupportedMediaType("send Content-Type: application/json (curl -d alone sends a form: add -H 'Content-Type: application/json')")
	}
	if encoding := strings.Join(h["Content-Encoding"], ","); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return unsupportedMediaType("send the body without Content-Encoding")
	}
	return nil
}

// readBody refuses a body that says it is too large before it reads any of it.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > maxBody {
		return nil, tooLarge()
	}
	var body []byte
	var err error
	if r.ContentLength >= 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, tooLarge()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, bodyTimeout(err)
	}
	if err != nil {
		e := badRequest("the body is shorter than announced, or broken")
		e.cause = err
		return nil, e
	}
	return body, nil
}

// live is 200 while the process runs.
func (s *server) live(w http.ResponseWriter, _ *http.Request, _ *entry) error {
	return writeOK(w)
}

// ready is 200 where a session could be created now, else 503 naming what is missing.
func (s *server) ready(w http.ResponseWriter, _ *http.Request, _ *entry) error {
	var missing []string
	if s.draining.Load() {
		missing = append(missing, "shutting down")
	}
	if !s.verifier.keys.loaded() {
		missing = append(missing, errNoKeys.Error())
	}
	if err := s.store.check(); err != nil {
		missing = append(missing, "redis: "+err.Error())
	}
	if missing != nil {
		return unavailable("not ready: "+strings.Join(missing, "; "), nil)
	}
	return writeOK(w)
}

func writeOK(w http.ResponseWriter) error {
	w.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	_, _ = io.WriteString(w, "ok\n")
	return nil
}

//go:embed openapi.yaml
var openAPI string

// description is the OpenAPI document, for partners' client generators.
func (s *server) description(w http.ResponseWriter, _ *http.Request, _ *entry) error {
	h := w.Header()
	h["Content-Type"] = []string{"application/yaml"}
	h["Content-Length"] = []string{strconv.Itoa(len(openAPI))} // net/http counts only what is small
	_, _ = io.WriteString(w, openAPI)
	return nil
}
