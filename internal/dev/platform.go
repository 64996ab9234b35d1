package dev

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/accesslog"

	"github.com/go-json-experiment/json"
)

// platform answers what a backend asks the reference platform before POST /auth/session, so that the backend runs with
// only its base URL changed. GET / leads to the sandbox. Every other request goes to service.
func (d *Dev) platform(service http.Handler) http.Handler {
	methods := map[string]string{"/token": "POST", "/end-users": "GET, HEAD, POST"}
	if d.page != nil {
		methods["/"] = "GET, HEAD"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.EscapedPath(), "/v1")
		allow, found := methods[path]
		if !found {
			service.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("X-Request-Id", accesslog.RequestID(r.Header))
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		switch {
		case !slices.Contains(strings.Split(allow, ", "), r.Method):
			h.Set("Allow", allow)
			d.refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes "+allow)
		case path == "/token":
			d.createToken(w, r)
		case path == "/end-users":
			d.endUsers(w, r)
		default:
			http.Redirect(w, r, d.pageURL, http.StatusSeeOther)
		}
	})
}

// refuse answers with an error in the service's format, whose booleans follow from its status, and logs it.
func (d *Dev) refuse(w http.ResponseWriter, status int, name, message string) {
	id, h := rand.Text(), w.Header()
	temporary := status == http.StatusTooManyRequests || status >= http.StatusServiceUnavailable
	if temporary {
		h.Set("Retry-After", "1")
	}
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Goa-Error", name)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, encode(map[string]any{"name": name, "id": id, "message": message, "temporary": temporary,
		"fault": status == http.StatusInternalServerError, "timeout": status == http.StatusGatewayTimeout}))
	d.log.Info("-dev answers with an error", "request_id", h.Get("X-Request-Id"), "error", name, "error_id", id,
		"cause", message)
}

// encode returns v as a line of JSON. v has only maps and slices of strings, bools and ints, which never fail.
func encode(v any) string {
	text, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}

// createToken is POST /token: it returns a token for any client_id and client_secret.
func (d *Dev) createToken(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		d.refuse(w, http.StatusRequestEntityTooLarge, "request_too_large", "the body must be at most 65536 bytes")
		return
	}
	id, secret := clientCredentials(r, body)
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, unprintable) || secret == "" {
		d.refuse(w, http.StatusBadRequest, "bad_request", "client_id (at most 128 printable ASCII characters, no space) "+
			"and client_secret are required: as JSON, as a form, or by HTTP Basic")
		return
	}
	lifetime := min(15*time.Minute, d.Config.Tokens.MaxLifetime)
	token := d.issue(id, lifetime)
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, encode(map[string]any{"token": token, "access_token": token, "token_type": "Bearer",
		"expires_in": int(lifetime.Seconds())}))
}

// clientCredentials reads the client's ID and secret from HTTP Basic (RFC 6749, section 2.3.1), or from body: JSON or a
// form. It returns "" for what is absent or malformed. It ignores Content-Type, because curl -d sends JSON as a form.
func clientCredentials(r *http.Request, body []byte) (id, secret string) {
	if user, password, ok := r.BasicAuth(); ok {
		id, _ = url.QueryUnescape(user)
		secret, _ = url.QueryUnescape(password)
		return id, secret
	}
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		var client struct {
			ID     string `json:"client_id"`
			Secret string `json:"client_secret"`
		}
		if err := json.Unmarshal(body, &client); err != nil {
			return "", ""
		}
		return client.ID, client.Secret
	}
	form, _ := url.ParseQuery(string(body))
	return form.Get("client_id"), form.Get("client_secret")
}

// endUsers is POST /end-users, which returns a new end user's ID to a caller with a valid token, and GET /end-users,
// which finds none for anyone, because no end user is stored.
func (d *Dev) endUsers(w http.ResponseWriter, r *http.Request) {
	answer := map[string]any{"end_users": []string{}}
	if r.Method == http.MethodPost {
		if challenge, err := d.checkToken(r.Header); err != nil {
			w.Header().Set("WWW-Authenticate", challenge)
			d.refuse(w, http.StatusUnauthorized, "unauthorized",
				"send a valid bearer token in the Authorization header: "+err.Error())
			return
		}
		id := "eu_2" + rand.Text() // 27 letters and digits after eu_, as a KSUID of these years
		answer = map[string]any{"end_user_id": id, "id": id}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, encode(answer))
}

// checkToken returns why a request's bearer token is not valid, and the challenge that says so. The challenge names an
// error only if there is a token (RFC 6750, section 3.1).
func (d *Dev) checkToken(h http.Header) (challenge string, err error) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if token == "" || !strings.EqualFold(scheme, "Bearer") {
		return "Bearer", errors.New("it is absent, or does not begin with Bearer and a space")
	}
	if _, err = d.verifier.Verify(strings.TrimLeft(token, " "), h[d.Config.ClientCertHeader]...); err != nil {
		text := strings.NewReplacer(`"`, "'", `\`, "/").Replace(err.Error()) // RFC 6750, section 3: neither is allowed
		challenge = `Bearer error="invalid_token", error_description="` + text + `"`
	}
	return challenge, err
}

// explainErrors returns service with answers for developers: a 401 says why, a 404 names paths of the platform, and
// sessions of some end users are errors. The service answers first, so that its checks, headers and log are as in
// production. The session behind such an error exists, as it may after a real one, and expires unused.
func (d *Dev) explainErrors(service http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &explainer{ResponseWriter: w, dev: d, request: r}
		r.Body = io.NopCloser(io.TeeReader(r.Body, &e.body)) // net/http closes the body
		service.ServeHTTP(e, r)
	})
}

// explainer is a ResponseWriter of the service that changes its answers. The service writes each answer at once.
type explainer struct {
	http.ResponseWriter
	dev     *Dev
	request *http.Request
	body    bytes.Buffer // of the request, as far as the service has read it
	reason  string       // to add to the error's message; "" adds nothing
}

// WriteHeader finds what there is to add to an error, and adds it to the challenge.
func (e *explainer) WriteHeader(status int) {
	switch status {
	case http.StatusUnauthorized:
		if challenge, err := e.dev.checkToken(e.request.Header); err != nil { // nil: the service has another reason
			e.Header().Set("WWW-Authenticate", challenge)
			e.reason = err.Error()
		}
	case http.StatusNotFound:
		path := strings.TrimPrefix(e.request.URL.EscapedPath(), "/v1")
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if slices.Contains([]string{"banking", "consent", "consents", "end-users", "energy", "institutions", "oauth",
			"webhooks"}, first) {
			e.reason = "it is one of the platform's, and -dev does not stand in for it"
		}
	}
	e.ResponseWriter.WriteHeader(status)
}

// Write is called once for each answer, with its whole body.
func (e *explainer) Write(answer []byte) (int, error) {
	var session struct {
		EndUserID string `json:"end_user_id"`
	}
	var members map[string]any
	_ = json.Unmarshal(e.body.Bytes(), &session) // a body that is no JSON has no end user
	_ = json.Unmarshal(answer, &members)         // an answer that is no JSON stays as it is
	name := map[string]string{"sandbox-429": "too_many_requests", "sandbox-500": "fault", "sandbox-503": "unavailable",
		"sandbox-504": "timeout"}[session.EndUserID]
	secret, _ := members["session_id"].(string) // "" for an error
	switch {
	case name != "" && secret != "":
		status, _ := strconv.Atoi(strings.TrimPrefix(session.EndUserID, "sandbox-"))
		e.dev.refuse(e.ResponseWriter, status, name, "this is the error that end_user_id asks for")
	case e.reason != "" && members != nil:
		members["message"] = fmt.Sprint(members["message"], ": ", e.reason)
		_, _ = io.WriteString(e.ResponseWriter, encode(members))
	default:
		if e.dev.sandbox != nil && secret != "" {
			e.dev.sandbox.observe(secret)
		}
		return e.ResponseWriter.Write(answer)
	}
	return len(answer), nil
}

// Unwrap is for http.ResponseController.
func (e *explainer) Unwrap() http.ResponseWriter { return e.ResponseWriter }
