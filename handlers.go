package main

import (
	"cmp"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"authsession/internal/accesslog"
	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/config"
	"authsession/internal/metrics"
	"authsession/internal/seal"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	maxBody     = 64 << 10         // bytes
	usualBody   = 512              // bytes; reading those at once saves 10% of a request's garbage
	bodyTimeout = 10 * time.Second // from a request's first byte to its body's last
)

// server answers HTTP. Only draining changes after the first request.
type server struct {
	config   config.Config
	verifier *bearer.Verifier
	store    *store
	inFlight *clients.Shares // requests in flight, their bodies read
	metrics  *metrics.Metrics
	log      io.Writer // gets a line for each request
	now      func() time.Time
	router   chi.Router
	draining atomic.Bool // shutting down: not ready
}

// handler either writes the response and returns nil, or returns an error and writes nothing. An error that is no
// *apiError is a bug. The handler adds to e what the log is to say of the request.
type handler func(w http.ResponseWriter, r *http.Request, e *accesslog.Entry) error

// routes is what ADDR serves.
func (s *server) routes() http.Handler {
	r := chi.NewRouter()
	r.Post("/auth/session", s.handle("/auth/session", s.createSession))
	r.Post("/v1/auth/session", s.handle("/v1/auth/session", s.createSession))
	s.get(r, "/livez", s.handleLivez)
	s.get(r, "/readyz", s.handleReadyz)
	s.get(r, "/openapi.yaml", s.serveOpenAPI)
	r.NotFound(s.handle("none", s.noRoute))
	r.MethodNotAllowed(s.handle("none", s.noRoute))
	s.router = r
	return r
}

// operatorRoutes is what METRICS_ADDR serves, where probes do not compete with callers' connections.
func (s *server) operatorRoutes() http.Handler {
	r := chi.NewRouter()
	s.get(r, "/livez", s.handleLivez)
	s.get(r, "/readyz", s.handleReadyz)
	r.Handle("/metrics", promhttp.HandlerFor(s.metrics.Registry, promhttp.HandlerOpts{}))
	return r
}

func (s *server) get(r chi.Router, path string, f handler) {
	r.Get(path, s.handle(path, f))
	r.Head(path, s.handle(path, f))
}

// noRoute is 405 for a path that has other methods, else 404.
func (s *server) noRoute(_ http.ResponseWriter, r *http.Request, _ *accesslog.Entry) error {
	path := r.URL.EscapedPath() // as chi matches it: /%61uth is not /auth
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

// handle makes f an http.Handler: it sets the headers of every answer, writes the error that f returns or panics with,
// counts the request, and logs one line.
func (s *server) handle(route string, f handler) http.HandlerFunc {
	counts := s.metrics.Route(route)
	return func(w http.ResponseWriter, r *http.Request) {
		e := accesslog.Entry{Start: time.Now(), RequestID: accesslog.RequestID(r.Header), Method: r.Method, Route: route,
			Status: http.StatusOK}
		h, values := w.Header(), [...]string{e.RequestID, "no-store", "nosniff"} // one allocation for three
		h["X-Request-Id"], h["Cache-Control"], h["X-Content-Type-Options"] = values[0:1:1], values[1:2:2], values[2:3:3]
		// A chunked request may have had a Content-Length, too, which net/http does not tell. A proxy may have believed
		// that one, so such a request is the connection's last (RFC 9112, section 6.1).
		if r.TransferEncoding != nil || r.ContentLength != 0 && r.Method != http.MethodPost || s.draining.Load() {
			h["Connection"] = []string{"close"}
		}
		if err := guard(f, w, r, &e); err != nil {
			apiErr, known := errors.AsType[*apiError](err)
			if !known {
				apiErr = fault(err)
			}
			e.Status, e.Error, e.ErrorID, e.Cause = apiErr.status, apiErr.name, rand.Text(), cmp.Or(apiErr.cause, err).Error()
			skipBody(w)
			apiErr.write(w, e.ErrorID)
		}
		s.finish(r, &e, counts)
	}
}

// finish counts and logs a request. A caller's fault is Info, ours is Error. Successful health checks are Debug,
// because there are many.
func (s *server) finish(r *http.Request, e *accesslog.Entry, counts *metrics.Route) {
	e.Duration = time.Since(e.Start)
	counts.Observe(e.Status, e.Error, e.Duration)
	if s.config.Clients != nil && e.ClientID != "" {
		name := "other"
		if client := s.config.Clients.Find(e.ClientID); client != nil && client.Name != "*" {
			name = client.Name
		}
		s.metrics.CountClient(name, e.Status)
	}
	level := slog.LevelInfo
	switch {
	case e.Status >= http.StatusInternalServerError:
		level = slog.LevelError
	case e.Status == http.StatusOK && (e.Route == "/livez" || e.Route == "/readyz"):
		level = slog.LevelDebug
	}
	if level >= s.config.LogLevel {
		e.RemoteIP = accesslog.RemoteIP(r.RemoteAddr, r.Header["X-Forwarded-For"], s.config.TrustedProxies)
		e.TraceID = accesslog.TraceID(r.Header["Traceparent"])
		_, _ = s.log.Write(e.Line(level))
	}
}

// guard runs f and returns its panic as an error with the stack, except http.ErrAbortHandler, which asks net/http to
// drop the connection.
func guard(f handler, w http.ResponseWriter, r *http.Request, e *accesslog.Entry) (err error) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			panic(v)
		} else if v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return f(w, r, e)
}

// skipBody limits how long an answer waits for a body that no handler reads: net/http reads up to 256 KiB first, to
// keep the connection. 100 ms are enough for callers that send header and body at once, though not in one packet.
// (EnableFullDuplex does not help: after a broken body it takes what follows for the next request.)
func skipBody(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(100 * time.Millisecond))
}

// createSession is POST /auth/session. The first check that fails answers, so their order is part of the contract.
func (s *server) createSession(w http.ResponseWriter, r *http.Request, e *accesslog.Entry) error {
	token, err := s.authenticate(r)
	if err != nil {
		return err
	}
	e.ClientID, e.TokenID, e.KeyID = token.ClientID, token.ID, token.KeyID
	if !token.HasScope {
		return insufficientScope(bearer.Scope)
	}
	client := s.config.Clients.Find(token.ClientID)
	if client == nil {
		return clientNotListed()
	}
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	if !s.inFlight.Acquire(token.ClientID) {
		return unavailable("too many requests are in flight, of this client or of all", nil)
	}
	defer s.inFlight.Release(token.ClientID)
	session, unknown, err := parseBody(body)
	e.Unknown = unknown
	if err == nil {
		err = session.limit(client)
	}
	if broken, ok := errors.AsType[*bodyError](err); ok {
		return invalid(broken.name, broken.Error(), nil)
	}
	now := s.now()
	if wait := client.Allow(token.ClientID, now); wait > 0 {
		return tooManySessions(wait)
	}
	secret := session.open(token.ClientID, now, cmp.Or(client.SessionTTL, s.config.SessionTTL))
	e.Session = session.ID
	record := session.encode()
	if s.config.SealRecords {
		record = seal.Seal(secret, record)
	}
	switch err := s.store.put(hashSecret(secret), record, session.ExpiresAt); {
	case timedOut(err):
		return storeTimedOut(err)
	case err != nil:
		return unavailable("the session store is not available", err)
	}
	w.Header()["Content-Type"] = []string{"application/json"}
	// Ignore the error: the client disconnected, so the session expires unused.
	_, _ = w.Write(session.answer(s.config.AuthURL, secret))
	return nil
}

// authenticate verifies the request's bearer token (RFC 6750, section 2.1). Only the one Authorization header counts.
func (s *server) authenticate(r *http.Request) (token bearer.Token, err error) {
	values := r.Header["Authorization"]
	if len(values) > 1 {
		return token, invalid("bad_request", "there must be one Authorization header", nil)
	}
	credentials := strings.Join(values, "")
	end := strings.IndexAny(credentials, " \t")
	if end < 0 || !strings.EqualFold(credentials[:end], "Bearer") {
		return token, unauthorized("Bearer", errors.New("no bearer token"))
	}
	const invalidToken = `Bearer error="invalid_token"`
	if credentials[end] != ' ' {
		return token, unauthorized(invalidToken, errors.New("no space before the token"))
	}
	token, err = s.verifier.Verify(strings.TrimLeft(credentials[end:], " "), r.Header[s.config.ClientCertHeader]...)
	if errors.Is(err, bearer.ErrNoKeys) {
		return token, unavailable("tokens can't be checked yet", err)
	}
	if err != nil {
		return token, unauthorized(invalidToken, err)
	}
	return token, nil
}

// checkMediaType accepts JSON, which is also the type of a body without one. Some callers send the same type twice: in
// two headers or, where a proxy joined those, in one. A part without a slash belongs to a quoted parameter.
func checkMediaType(h http.Header) error {
	const wanted = "application/json"
	given := make([]string, 0, 2) // which needs no heap
	for _, value := range h["Content-Type"] {
		for part := range strings.SplitSeq(value, ",") {
			media, _, _ := strings.Cut(part, ";")
			if strings.Contains(media, "/") {
				given = append(given, strings.ToLower(strings.Trim(media, " \t")))
			}
		}
	}
	given = slices.Compact(given)
	if len(given) > 1 || strings.Join(h["Content-Type"], "") != "" && !slices.Contains(given, wanted) {
		return unsupportedMediaType("there must be one Content-Type, application/json " +
			"(curl -d alone sends a form: add -H 'Content-Type: application/json')")
	}
	if encoding := strings.Join(h["Content-Encoding"], ","); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return unsupportedMediaType("send the body without Content-Encoding")
	}
	return nil
}

// readBody refuses a body that is announced as too large before reading any of it.
func readBody(w http.ResponseWriter, r *http.Request) (body []byte, err error) {
	if r.ContentLength > maxBody {
		return nil, bodyTooLarge(maxBody)
	}
	if 0 < r.ContentLength && r.ContentLength <= usualBody {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	} else { // memory grows with what has come, not with what was announced
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	_, over := errors.AsType[*http.MaxBytesError](err)
	switch {
	case over:
		return nil, bodyTooLarge(maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, bodyTimedOut(bodyTimeout, err)
	case errors.Is(err, net.ErrClosed): // SHUTDOWN_GRACE is over
		return nil, unavailable("shutting down", err)
	case err != nil:
		return nil, invalid("bad_request", "the body is shorter than announced, or broken", err)
	}
	return body, nil
}

// handleReadyz is 200 where a session could be created now, else 503 naming what is missing.
func (s *server) handleReadyz(w http.ResponseWriter, r *http.Request, e *accesslog.Entry) error {
	var missing []string
	if s.draining.Load() {
		missing = append(missing, "shutting down")
	}
	if !s.verifier.Ready() {
		missing = append(missing, bearer.ErrNoKeys.Error())
	}
	cause := s.store.check()
	if cause != nil {
		missing = append(missing, "redis: "+publicReason(cause))
	}
	if missing != nil {
		message := "not ready: " + strings.Join(missing, "; ")
		return unavailable(message, errors.Join(errors.New(message), cause))
	}
	return s.handleLivez(w, r, e)
}

// handleLivez is 200 while the process runs.
func (s *server) handleLivez(w http.ResponseWriter, _ *http.Request, _ *accesslog.Entry) error {
	w.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	_, _ = io.WriteString(w, "ok\n")
	return nil
}

//go:embed openapi.yaml
var openAPI string

// serveOpenAPI answers with the OpenAPI document, for partners' client generators.
func (s *server) serveOpenAPI(w http.ResponseWriter, r *http.Request, _ *accesslog.Entry) error {
	w.Header()["Content-Type"] = []string{"application/yaml"}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(openAPI))
	return nil
}
