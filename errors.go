package main

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// apiError is an answer of the contract's error table. Any other error that a handler returns is a bug: the caller gets
// 500 "fault", and the log gets the whole error.
type apiError struct {
	status    int
	name      string // the class, also in the goa-error header
	message   string // for the caller: names the member and the rule, never a value
	temporary bool   // trying again may work
	timeout   bool
	header    http.Header // further headers of the answer
	cause     error       // for the log alone
}

func (e *apiError) Error() string { return e.message }

// write answers with the six members of application/vnd.goa.error. id names this occurrence, in the log too.
func (e *apiError) write(w http.ResponseWriter, id string) {
	body, err := json.Marshal(struct {
		Fault     bool   `json:"fault"`
		ID        string `json:"id"`
		Message   string `json:"message"`
		Name      string `json:"name"`
		Temporary bool   `json:"temporary"`
		Timeout   bool   `json:"timeout"`
	}{e.status == http.StatusInternalServerError, id, e.message, e.name, e.temporary, e.timeout})
	if err != nil {
		panic(err) // strings and bools can always be encoded
	}
	h := w.Header()
	for name, values := range e.header {
		h[name] = values
	}
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Goa-Error", e.name)
	w.WriteHeader(e.status)
	_, _ = w.Write(append(body, '\n'))
}

// invalid is a bad request; name is bad_request or, for one member, a name of its own.
func invalid(name, message string, cause error) *apiError {
	return &apiError{status: http.StatusBadRequest, name: name, message: message, cause: cause}
}

// unauthorized says one thing to every caller, because the cause is for the log alone. The challenge names an error
// only where a bearer token was sent (RFC 6750, section 3.1).
func unauthorized(challenge string, cause error) *apiError {
	return &apiError{status: http.StatusUnauthorized, name: "unauthorized", cause: cause,
		message: "send a valid bearer token in the Authorization header",
		header:  http.Header{"Www-Authenticate": {challenge}}}
}

func insufficientScope(scope string) *apiError {
	challenge := `Bearer error="insufficient_scope", scope="` + scope + `"`
	return &apiError{status: http.StatusForbidden, name: "forbidden",
		message: "the access token needs the scope " + scope, header: http.Header{"Www-Authenticate": {challenge}}}
}

func clientNotListed() *apiError {
	return &apiError{status: http.StatusForbidden, name: "forbidden", message: "this client may not create sessions"}
}

// tooManySessions rounds wait up to whole seconds for Retry-After.
func tooManySessions(wait time.Duration) *apiError {
	seconds := (wait + time.Second - 1) / time.Second
	return &apiError{status: http.StatusTooManyRequests, name: "too_many_requests", temporary: true,
		message: "this client has created as many sessions as it may for now",
		header:  http.Header{"Retry-After": {strconv.Itoa(int(seconds))}}}
}

func notFound() *apiError {
	return &apiError{status: http.StatusNotFound, name: "not_found", message: "there is nothing at this path"}
}

func methodNotAllowed(allow string) *apiError {
	return &apiError{status: http.StatusMethodNotAllowed, name: "method_not_allowed",
		message: "this path takes " + allow, header: http.Header{"Allow": {allow}}}
}

// bodyTimedOut and bodyTooLarge close the connection, because the rest of the body is not read.
func bodyTimedOut(limit time.Duration, cause error) *apiError {
	return &apiError{status: http.StatusRequestTimeout, name: "timeout", timeout: true, cause: cause,
		message: fmt.Sprintf("the body was not there %s after the request began", limit),
		header:  http.Header{"Connection": {"close"}}}
}

func bodyTooLarge(limit int64) *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, name: "request_too_large",
		message: fmt.Sprintf("the body must be at most %d bytes", limit), header: http.Header{"Connection": {"close"}}}
}

func unsupportedMediaType(message string) *apiError {
	return &apiError{status: http.StatusUnsupportedMediaType, name: "unsupported_media_type", message: message}
}

func fault(cause error) *apiError {
	return &apiError{status: http.StatusInternalServerError, name: "fault", cause: cause,
		message: "something is wrong on our side"}
}

func unavailable(message string, cause error) *apiError {
	return &apiError{status: http.StatusServiceUnavailable, name: "unavailable", message: message, cause: cause,
		temporary: true, header: http.Header{"Retry-After": {"1"}}}
}

func storeTimedOut(cause error) *apiError {
	return &apiError{status: http.StatusGatewayTimeout, name: "timeout", cause: cause,
		message:   "the session store did not answer in time",
		temporary: true, timeout: true, header: http.Header{"Retry-After": {"1"}}}
}
