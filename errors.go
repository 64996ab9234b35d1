package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"
)

// apiError is an answer of the contract's error table. What a handler returns
// that is none is a bug: the caller gets 500 "fault", the log the whole error.
type apiError struct {
	status    int
	name      string // class, also the goa-error header
	message   string // for the caller: the member and the rule, never a value
	temporary bool   // trying again may work
	timeout   bool
	header    [2]string // one more header and its value; "" is none
	cause     error     // for the log alone
}

func (e *apiError) Error() string { return e.name + ": " + e.message }

func badRequest(message string) *apiError {
	return &apiError{status: http.StatusBadRequest, name: "bad_request", message: message}
}

// unauthorized says one thing to every caller; why is for the log. The challenge
// names an error only where a bearer token was sent (RFC 6750, section 3.1).
func unauthorized(challenge string, cause error) *apiError {
	return &apiError{status: http.StatusUnauthorized, name: "unauthorized", message: "send a valid bearer token in the Authorization header",
		header: [2]string{"Www-Authenticate", challenge}, cause: cause}
}

func forbidden() *apiError {
	return &apiError{status: http.StatusForbidden, name: "forbidden", message: "the access token needs the scope " + scope,
		header: [2]string{"Www-Authenticate", `Bearer error="insufficient_scope", scope="` + scope + `"`}}
}

func notFound() *apiError {
	return &apiError{status: http.StatusNotFound, name: "not_found", message: "there is nothing at this path"}
}

func methodNotAllowed(allow string) *apiError {
	return &apiError{status: http.StatusMethodNotAllowed, name: "method_not_allowed", message: "this path takes " + allow, header: [2]string{"Allow", allow}}
}

// bodyTimeout and tooLarge leave the rest of the body unread: the connection ends.
func bodyTimeout(cause error) *apiError {
	return &apiError{status: http.StatusRequestTimeout, name: "timeout", message: fmt.Sprintf("the body was not there %s after the request began", readTimeout),
		timeout: true, header: [2]string{"Connection", "close"}, cause: cause}
}

func tooLarge() *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, name: "request_too_large", message: fmt.Sprintf("the body must be at most %d bytes", maxBody),
		header: [2]string{"Connection", "close"}}
}

func unsupportedMediaType(message string) *apiError {
	return &apiError{status: http.StatusUnsupportedMediaType, name: "unsupported_media_type", message: message}
}

func unavailable(message string, cause error) *apiError {
	return &apiError{status: http.StatusServiceUnavailable, name: "unavailable", message: message,
		temporary: true, header: [2]string{"Retry-After", "1"}, cause: cause}
}

func storeTimedOut(cause error) *apiError {
	return &apiError{status: http.StatusGatewayTimeout, name: "timeout", message: "the session store did not answer in time",
		temporary: true, timeout: true, header: [2]string{"Retry-After", "1"}, cause: cause}
}

// handler answers a request last of all it does, or returns an error and answers nothing.
type handler func(http.ResponseWriter, *http.Request, *entry) error

// handle makes f an http.Handler: it sets the headers that every answer has, writes the
// error that f returns or panics with, and logs one line.
func (s *server) handle(route string, f handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		e := entry{start: time.Now(), requestID: r.Header.Get("X-Request-Id"), route: route}
		if !validRequestID(e.requestID) {
			e.requestID = rand.Text()
		}
		h, values := w.Header(), [...]string{e.requestID, "no-store", "nosniff"}
		h["X-Request-Id"] = values[0:1:1]
		h["Cache-Control"] = values[1:2:2]
		h["X-Content-Type-Options"] = values[2:3:3]
		err := guard(f, w, r, &e)
		if err == nil {
			s.done(r, &e, http.StatusOK, "")
			return
		}
		apiErr, known := errors.AsType[*apiError](err)
		if !known {
			apiErr = &apiError{status: http.StatusInternalServerError, name: "fault", message: "something is wrong on our side", cause: err}
		}
		id := rand.Text()
		writeError(w, r, apiErr, id)
		cause := apiErr.message
		if apiErr.cause != nil {
			cause = apiErr.cause.Error()
		}
		attrs := []slog.Attr{slog.String("error_id", id), slog.String("cause", cause)}
		if p, panicked := errors.AsType[*panicError](err); panicked {
			attrs = append(attrs, slog.String("stack", string(p.stack)))
		}
		s.done(r, &e, apiErr.status, apiErr.name, attrs...)
	}
}

// entry is what the log says of one request. Its fields are the only way there: no
// token, session_id, end_user_id or URI.
type entry struct {
	start     time.Time
	requestID string
	route     string
	clientID  string
	session   string   // the session's public id
	unknown   []string // names of members that the body has and we do not know
}

// done counts a request and logs it, a caller's fault as Info and ours as Error. name is
// the error's, "" for none.
func (s *server) done(r *http.Request, e *entry, status int, name string, more ...slog.Attr) {
	now := time.Now()
	took := now.Sub(e.start)
	s.requests.count(e.route, status, name, took)
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	log := s.log.Handler() // as Logger does, without looking for the line of source
	if !log.Enabled(r.Context(), level) {
		return
	}
	remote, _, _ := net.SplitHostPort(r.RemoteAddr)
	line := slog.NewRecord(now, level, "request", 0)
	line.AddAttrs(
		slog.String("request_id", e.requestID),
		slog.String("method", r.Method),
		slog.String("route", e.route),
		slog.Int("status", status),
		slog.Int64("duration_us", took.Microseconds()),
		slog.String("remote_ip", remote))
	if e.clientID != "" {
		line.AddAttrs(slog.String("client_id", e.clientID))
	}
	if e.session != "" {
		line.AddAttrs(slog.String("session", e.session))
	}
	if e.unknown != nil {
		line.AddAttrs(slog.Any("unknown_members", e.unknown))
	}
	if name != "" {
		line.AddAttrs(slog.String("error", name))
	}
	line.AddAttrs(more...)
	_ = log.Handle(r.Context(), line)
}

// panicError is a handler's panic, with where it was.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// guard runs f and returns its panic as an error. http.ErrAbortHandler goes on: it
// asks net/http to drop the connection.
func guard(f handler, w http.ResponseWriter, r *http.Request, e *entry) (err error) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			panic(v)
		} else if v != nil {
			err = &panicError{v, debug.Stack()}
		}
	}()
	return f(w, r, e)
}

// bodyGrace is how long a refusal waits for the rest of a body, so that its connection
// can be kept: callers send headers and body at once, but not always in one packet.
const bodyGrace = 100 * time.Millisecond

// writeError answers with the six members of application/vnd.goa.error.
func writeError(w http.ResponseWriter, r *http.Request, e *apiError, id string) {
	body := encodeJSON(struct {
		Fault     bool   `json:"fault"`
		ID        string `json:"id"`
		Message   string `json:"message"`
		Name      string `json:"name"`
		Temporary bool   `json:"temporary"`
		Timeout   bool   `json:"timeout"`
	}{e.status == http.StatusInternalServerError, id, e.message, e.name, e.temporary, e.timeout})
	h := w.Header()
	if e.header[0] != "" {
		h.Set(e.header[0], e.header[1])
	}
	if r.ContentLength > maxBody { // more than we would read to keep the connection
		h.Set("Connection", "close")
	}
	// A refusal must not wait for a body that nobody wants: net/http reads up to 256 KiB
	// of it before it sends the answer. What is not there by then ends the connection.
	// (EnableFullDuplex is no way out: after a broken body it takes what follows for the
	// next request.)
	if h.Get("Connection") == "" {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyGrace))
	}
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Goa-Error", e.name)
	w.WriteHeader(e.status)
	_, _ = w.Write(body)
}

// validRequestID tells whether a caller's X-Request-Id is one we take over.
func validRequestID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if !isAlphanumeric(c) && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return 1 <= len(id) && len(id) <= 64
}
