package main

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// apiError is an answer of the contract's error table. Any other error that a handler returns is a bug: the caller gets
// 500 "fault", and the log gets the whole error.
type apiError struct {
	status    int
	name      string // the class, also in the goa-error header
	message   string // for the caller: the member and the rule, never a value
	temporary bool   // trying again may work
	timeout   bool
	header    [2]string // one more header and its value; "" is none
	cause     error     // for the log alone
}

func (e *apiError) Error() string { return e.message }

func badRequest(message string, cause error) *apiError {
	return invalid("bad_request", message, cause)
}

// invalid is a bad request with a name of its own.
func invalid(name, message string, cause error) *apiError {
	return &apiError{status: http.StatusBadRequest, name: name, message: message, cause: cause}
}

// unauthorized says one thing to every caller; why is for the log. The challenge names an error only where a bearer
// token was sent (RFC 6750, section 3.1).
func unauthorized(challenge string, cause error) *apiError {
	return &apiError{status: http.StatusUnauthorized, name: "unauthorized", cause: cause,
		message: "send a valid bearer token in the Authorization header",
		header:  [2]string{"Www-Authenticate", challenge}}
}

func insufficientScope(scope string) *apiError {
	return &apiError{status: http.StatusForbidden, name: "forbidden",
		message: "the access token needs the scope " + scope,
		header:  [2]string{"Www-Authenticate", `Bearer error="insufficient_scope", scope="` + scope + `"`}}
}

func notListed() *apiError {
	return &apiError{status: http.StatusForbidden, name: "forbidden", message: "this client may not create sessions"}
}

// tooManySessions says after which whole number of seconds there is one again.
func tooManySessions(wait time.Duration) *apiError {
	seconds := (wait + time.Second - 1) / time.Second
	return &apiError{status: http.StatusTooManyRequests, name: "too_many_requests", temporary: true,
		message: "this client has created as many sessions as it may for now",
		header:  [2]string{"Retry-After", strconv.Itoa(int(seconds))}}
}

func notFound() *apiError {
	return &apiError{status: http.StatusNotFound, name: "not_found", message: "there is nothing at this path"}
}

func methodNotAllowed(allow string) *apiError {
	return &apiError{status: http.StatusMethodNotAllowed, name: "method_not_allowed",
		message: "this path takes " + allow, header: [2]string{"Allow", allow}}
}

// bodyTimedOut and tooLarge leave the rest of the body unread, so the connection ends.

func bodyTimedOut(limit time.Duration, cause error) *apiError {
	return &apiError{status: http.StatusRequestTimeout, name: "timeout", timeout: true, cause: cause,
		message: fmt.Sprintf("the body was not there %s after the request began", limit),
		header:  [2]string{"Connection", "close"}}
}

func tooLarge(limit int64) *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, name: "request_too_large",
		message: fmt.Sprintf("the body must be at most %d bytes", limit), header: [2]string{"Connection", "close"}}
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
		temporary: true, header: [2]string{"Retry-After", "1"}}
}

func storeTimedOut(cause error) *apiError {
	return &apiError{status: http.StatusGatewayTimeout, name: "timeout", cause: cause,
		message:   "the session store did not answer in time",
		temporary: true, timeout: true, header: [2]string{"Retry-After", "1"}}
}
