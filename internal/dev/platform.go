package dev

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// platform answers the two paths of the reference platform that a backend calls before POST /auth/session, so that the
// backend runs with only its base URL changed. Every other request goes to service.
func (d *Dev) platform(service http.Handler) http.Handler {
	handlers := map[string]http.HandlerFunc{"/token": d.createToken, "/end-users": d.createEndUser}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle, found := handlers[strings.TrimPrefix(r.URL.EscapedPath(), "/v1")]
		if !found {
			service.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("X-Request-Id", rand.Text())
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Type", "application/json")
		if r.Method != http.MethodPost {
			h.Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes POST")
			return
		}
		handle(w, r)
	})
}

// refuse answers with an error in the service's format.
func refuse(w http.ResponseWriter, status int, name, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Goa-Error", name)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, encode(map[string]any{"name": name, "id": rand.Text(), "message": message,
		"fault": status == http.StatusInternalServerError, "temporary": false, "timeout": false}))
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
		refuse(w, http.StatusRequestEntityTooLarge, "request_too_large", "the body must be at most 65536 bytes")
		return
	}
	id, secret := clientCredentials(r, body)
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, unprintable) || secret == "" {
		refuse(w, http.StatusBadRequest, "bad_request", "client_id (at most 128 printable ASCII characters, no space) "+
			"and client_secret are required: as JSON, as a form, or by HTTP Basic")
		return
	}
	lifetime := min(15*time.Minute, d.Config.Tokens.MaxLifetime)
	token, err := d.issue(id, lifetime)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "fault", err.Error())
		return
	}
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

// createEndUser is POST /end-users: it returns a new end user's ID to a caller with a valid token, and stores nothing.
func (d *Dev) createEndUser(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	challenge, err := "Bearer", errors.New("no bearer token") // error= only if there is a token: RFC 6750, section 3.1
	if token != "" && strings.EqualFold(scheme, "Bearer") {
		challenge = `Bearer error="invalid_token"`
		_, err = d.verifier.Verify(token)
	}
	if err != nil {
		d.log.Info("POST /end-users refused a token", "cause", err.Error())
		w.Header().Set("WWW-Authenticate", challenge)
		refuse(w, http.StatusUnauthorized, "unauthorized", "send a valid bearer token in the Authorization header")
		return
	}
	id := "eu_2" + rand.Text() // 27 letters and digits after eu_, as a KSUID of these years
	_, _ = io.WriteString(w, encode(map[string]any{"end_user_id": id, "id": id}))
}
