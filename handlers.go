package main

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/groupcommit"
	"authsession/internal/seal"
)

const (
	maxBody     = 64 << 10         // bytes
	usualBody   = 512              // bytes; to read those whole saves 10% of a request's garbage
	smallBody   = 4 << 10          // bytes; a larger one needs a place to be read
	bodyTimeout = 10 * time.Second // from a request's first byte to its body's last
)

// handler answers a request as the last thing it does, or returns an error and answers nothing. An error that is no
// *apiError is a bug.
type handler func(http.ResponseWriter, *http.Request, *note) error

// note is what a handler has the access log say of a request.
type note struct {
	bearer  bearer.Token
	client  *clients.Client // nil: none, or not listed
	session string          // the session's public id
	unknown []string        // names of members that the body has and we do not know
}

// api holds what the handlers use. All its fields but the atomic ones are set before the first request.
type api struct {
	verifier    *bearer.Verifier
	certHeader  string        // in which the gateway passes its caller's certificate; "": none
	clients     *clients.File // nil: every client may do all
	store       *store
	now         func() time.Time
	authURL     string // up to and with "sess_id="
	sessionTTL  time.Duration
	sealRecords bool
	inFlight    *clients.Shares // requests in work, their bodies read
	reading     *clients.Shares // larger bodies that are being read

	// Of -dev alone, else nil.
	issue func(client string) (token string, lifetime time.Duration, err error)
	made  func(secret string) // is told of each session

	created  atomic.Uint64 // sessions
	draining atomic.Bool   // shutting down: not ready
	cutOff   atomic.Bool   // shutting down: what still waits has no more time
}

// createSession is POST /auth/session. The first check that fails answers, so their order is part of the interface.
func (a *api) createSession(w http.ResponseWriter, r *http.Request, n *note) error {
	who, err := a.authenticate(r)
	if err != nil {
		return err
	}
	client := a.clients.Find(who.ClientID)
	n.bearer, n.client = who, client
	if !who.HasScope {
		return insufficientScope(bearer.Scope)
	}
	if client == nil {
		return notListed()
	}
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	body, err := a.readBody(w, r, who.ClientID)
	if err != nil {
		return err
	}
	if err := a.inFlight.Acquire(who.ClientID); err != nil {
		return unavailable(err.Error(), err)
	}
	defer a.inFlight.Release(who.ClientID)
	session, unknown, err := parseBody(body)
	n.unknown = unknown
	if err == nil {
		err = session.limit(client)
	}
	switch broken, ok := errors.AsType[*bodyError](err); {
	case ok:
		return invalid(broken.name, broken.message, nil)
	case err != nil:
		return err
	}
	now := a.now()
	if wait := client.Allow(who.ClientID, now); wait > 0 {
		return tooManySessions(wait)
	}
	secret := session.open(who.ClientID, now, cmp.Or(client.SessionTTL, a.sessionTTL))
	n.session = session.ID
	record := session.encode()
	if a.sealRecords {
		record = seal.Seal(secret, record)
	}
	err = a.store.put(who.ClientID, hashSecret(secret), record, session.ExpiresAt)
	if groupcommit.TimedOut(err) {
		return storeTimedOut(err)
	}
	if err != nil {
		return unavailable("the session store is not available", err)
	}
	a.created.Add(1)
	answer := appendText(make([]byte, 0, 256), `{"auth_url":`, a.authURL+secret) // by hand, as encode says why
	answer = strconv.AppendInt(append(answer, `,"expires_at":`...), session.ExpiresAt, 10)
	answer = appendText(answer, `,"id":`, session.ID)
	answer = appendText(answer, `,"session_id":`, secret)
	if a.made != nil {
		a.made(secret)
	}
	return writeJSON(w, answer)
}

// writeJSON answers with an object that lacks its last brace. The newline is for people's terminals.
func writeJSON(w http.ResponseWriter, object []byte) error {
	w.Header()["Content-Type"] = []string{"application/json"}
	_, _ = w.Write(append(object, "}\n"...)) // a caller that has gone: nobody holds the id
	return nil
}

// authenticate returns the bearer of the request's token (RFC 6750, section 2.1). A token anywhere but in the one
// Authorization header does not count.
func (a *api) authenticate(r *http.Request) (who bearer.Token, err error) {
	values := r.Header["Authorization"]
	if len(values) > 1 {
		return who, badRequest("there must be one Authorization header", nil)
	}
	credentials := strings.Join(values, "")
	end := strings.IndexAny(credentials, " \t")
	if end < 0 || !strings.EqualFold(credentials[:end], "Bearer") {
		return who, unauthorized("Bearer", errors.New("no bearer token"))
	}
	const invalidToken = `Bearer error="invalid_token"`
	if credentials[end] != ' ' {
		return who, unauthorized(invalidToken, errors.New("no single space before the token"))
	}
	who, err = a.verifier.Verify(credentials[end+1:], r.Header[a.certHeader]...)
	if errors.Is(err, bearer.ErrNoKeys) {
		return who, unavailable("tokens can't be checked yet", err)
	}
	if err != nil {
		return who, unauthorized(invalidToken, err)
	}
	return who, nil
}

// checkMediaType takes JSON, which is also what a body without a type is.
func checkMediaType(h http.Header) error {
	const json = "application/json"
	given := strings.Join(h["Content-Type"], ",")
	media, _, _ := strings.Cut(given, ";")
	media = strings.TrimSpace(media)
	// The lengths are compared since EqualFold takes ſ, two bytes, for an s.
	if given != "" && (len(media) != len(json) || !strings.EqualFold(media, json)) {
		return unsupportedMediaType("send Content-Type: application/json " +
			"(curl -d alone sends a form: add -H 'Content-Type: application/json')")
	}
	if encoding := strings.Join(h["Content-Encoding"], ","); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return unsupportedMediaType("send the body without Content-Encoding")
	}
	return nil
}

// readBody refuses a body that says it is too large before it reads any of it. What it holds of one over usualBody
// grows with what has come, not with what was announced. Bodies over smallBody need a place, since all connections may
// send one at once.
func (a *api) readBody(w http.ResponseWriter, r *http.Request, client string) ([]byte, error) {
	if r.ContentLength > maxBody {
		return nil, tooLarge(maxBody)
	}
	if r.ContentLength > smallBody || r.ContentLength < 0 { // -1: it does not say
		if err := a.reading.Acquire(client); err != nil {
			return nil, unavailable(err.Error(), err)
		}
		defer a.reading.Release(client)
	}
	var body []byte
	var err error
	if 0 < r.ContentLength && r.ContentLength <= usualBody {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, tooLarge(maxBody)
	}
	if err != nil && a.cutOff.Load() {
		return nil, unavailable("shutting down", err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, bodyTimedOut(bodyTimeout, err)
	}
	if err != nil {
		return nil, badRequest("the body is shorter than announced, or broken", err)
	}
	return body, nil
}

// live is 200 while the process runs.
func (a *api) live(w http.ResponseWriter, _ *http.Request, _ *note) error { return writeOK(w) }

// ready is 200 where a session could be created now, else 503 naming what is missing.
func (a *api) ready(w http.ResponseWriter, _ *http.Request, _ *note) error {
	var missing []string
	if a.draining.Load() {
		missing = append(missing, "shutting down")
	}
	if !a.verifier.Ready() {
		missing = append(missing, bearer.ErrNoKeys.Error())
	}
	cause := a.store.check()
	if cause != nil {
		missing = append(missing, "redis: "+lack(cause))
	}
	if missing != nil {
		message := "not ready: " + strings.Join(missing, "; ")
		return unavailable(message, errors.Join(errors.New(message), cause))
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
func (a *api) description(w http.ResponseWriter, _ *http.Request, _ *note) error {
	h := w.Header()
	h["Content-Type"] = []string{"application/yaml"}
	h["Content-Length"] = []string{strconv.Itoa(len(openAPI))} // net/http itself counts only small answers
	_, _ = io.WriteString(w, openAPI)
	return nil
}

// healthcheck asks the service that listens on addr whether it is ready. Its error is that it is not, and why.
func healthcheck(addr string, timeout time.Duration) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("reading ADDR: %w", err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	client := http.Client{Transport: &http.Transport{}, Timeout: timeout} // through no proxy
	response, err := client.Get("http://" + net.JoinHostPort(host, port) + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return fmt.Errorf("status %d: %s", response.StatusCode, answer)
	}
	return nil
}
