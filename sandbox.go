package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// sandbox plays the consent page in -dev, so that the whole flow can be clicked through.
// It is also the example for that page's author: all it knows of a session is the record
// in Redis, which it GETs to show and GETDELs to end. A real page also makes sure who the
// end user is, and says in frame-ancestors who may frame it: here anyone may.
type sandbox struct {
	store   *store
	log     *slog.Logger
	formKey []byte // signs forms; replicas of a real page share it
}

func newSandbox(s *store, log *slog.Logger) *sandbox {
	return &sandbox{store: s, log: log, formKey: []byte(rand.Text())}
}

func (b *sandbox) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { b.write(w, b.show(r)) })
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		b.write(w, b.decide(r))
	})
	return mux
}

// view is what the browser gets.
type view struct {
	status   int
	location string // of a redirect; "": the page
	title    string
	text     string
	message  map[string]any // to the page that frames this one; nil: none
	target   string         // the only origin that may read message

	asked  *session // what there is to decide; nil: nothing
	secret string   // that opened it
}

// show is GET /?sess_id=…. It leaves the session as it is: people reload.
func (b *sandbox) show(r *http.Request) view {
	secret := r.URL.Query().Get("sess_id")
	s, err := b.load(r, b.store.redis.Get, secret)
	if err != nil {
		return b.failed(err, http.StatusNotFound)
	}
	return view{status: http.StatusOK, title: "Share your data?", text: "An app asks to read your data.", asked: s, secret: secret}
}

// decide is the form's POST. GETDEL makes it happen once: of two tabs one gets the record.
// Where its reply is lost on the way, nobody does.
func (b *sandbox) decide(r *http.Request) view {
	secret, action := r.PostFormValue("sess_id"), r.PostFormValue("action")
	switch {
	case !hmac.Equal([]byte(r.PostFormValue("token")), []byte(b.formToken(secret))):
		return view{status: http.StatusForbidden, title: "Nothing was decided", text: "This form is not from this page, or from before its restart. Open the link again."}
	case action != "approve" && action != "cancel":
		return view{status: http.StatusBadRequest, title: "Nothing was decided", text: "The form names neither Approve nor Cancel. Open the link again."}
	}
	s, err := b.load(r, b.store.redis.GetDel, secret)
	if err != nil {
		return b.failed(err, http.StatusGone) // it was there when the form was made
	}
	b.log.Info("sandbox decision", "action", action, "session", s.ID)
	var v view
	if action == "approve" {
		id := rand.Text()
		v = view{title: "Approved", text: "The consent is " + id + ".", target: origin(s.RedirectURI, s.CancelURI)}
		v.location = addQuery(s.RedirectURI, "consent_id="+id)
		v.message = map[string]any{"isCompleted": true, "consentID": id, "redirectURL": v.location}
	} else {
		f := newFailure("access_denied", "CONSENT_ENDUSER_DENIED", "The end user cancelled.")
		v = view{title: "Cancelled", text: "Nothing is shared.", message: f.message(), target: origin(s.CancelURI, s.RedirectURI)}
		v.location = addQuery(s.CancelURI, f.query())
	}
	v.status = http.StatusSeeOther
	if v.location == "" || r.PostFormValue("framed") != "" { // the page tells, or its message does
		v.status, v.location = http.StatusOK, ""
	}
	return v
}

// load reads the record that secret opens, by GET or GETDEL. A browser that goes away
// does not stop it: its end user has decided.
func (b *sandbox) load(r *http.Request, command func(context.Context, string) *redis.StringCmd, secret string) (*session, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), b.store.timeout)
	defer cancel()
	value, err := command(ctx, sessionKey(b.store.prefix, secret)).Bytes()
	if err != nil {
		return nil, err
	}
	s := &session{}
	if err := json.Unmarshal(value, s); err != nil {
		return nil, fmt.Errorf("decoding the record: %w", err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("the record has version %d", s.Version)
	}
	if err := cmp.Or(checkURI(s.RedirectURI), checkURI(s.CancelURI)); err != nil { // the service has; but who else writes there?
		return nil, fmt.Errorf("a URI of the record %w", err)
	}
	return s, nil
}

// failed is the page for a session that can't be had; absent is the status of one that
// is not there.
func (b *sandbox) failed(err error, absent int) view {
	if !errors.Is(err, redis.Nil) {
		b.log.Error("sandbox has no session", "cause", err.Error())
		return view{status: http.StatusServiceUnavailable, title: "Not now", text: "The session can't be read. Try again in a moment."}
	}
	f := newFailure("invalid_request", "LINK_INVALID_SESSION", "The session has expired, was used, or never was.")
	return view{status: absent, title: "This link does not work", text: "Its session has expired, was used, or never was. Start again where you came from.",
		message: f.message(), target: "*"} // nobody knows any more whose it was
}

// formToken shows that a form comes from a page that show made for this very session.
// The Origin header can't: with no-referrer browsers send "null" there.
func (b *sandbox) formToken(secret string) string {
	mac := hmac.New(sha256.New, b.formKey)
	mac.Write([]byte(secret))
	return hex.EncodeToString(mac.Sum(nil))
}

// failure is why there is no consent. A URI's query has it in OAuth's names, a message in
// those of the reference platform's browser SDK.
type failure struct{ code, kind, id, description, uri string }

func newFailure(code, kind, description string) failure {
	return failure{code, kind, rand.Text(), description, "https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2.1"}
}

func (f failure) query() string {
	return url.Values{"error": {f.code}, "error_type": {f.kind}, "error_id": {f.id}, "error_description": {f.description}, "error_uri": {f.uri}}.Encode()
}

func (f failure) message() map[string]any {
	return map[string]any{"isCompleted": false, "error": f.code, "errorType": f.kind, "errorID": f.id, "errorDescription": f.description, "errorURI": f.uri}
}

// addQuery adds to uri's query, and leaves every byte of uri as it is. "" stays "".
func addQuery(uri, query string) string {
	switch {
	case uri == "":
		return ""
	case strings.Contains(uri, "?"):
		return uri + "&" + query
	}
	return uri + "?" + query
}

// origin is that of the first URI given; "*", any, where none is or an app's has none.
func origin(uris ...string) string {
	u, err := url.Parse(cmp.Or(uris...))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return "*"
	}
	return u.Scheme + "://" + u.Host
}

// sandboxHTML has $names, which os.Expand fills in, and a part between two marks that is
// there only while there is something to decide. (html/template would add 8 MB to the
// binary, a half: it keeps the linker from dropping methods that nobody calls.)
//
//go:embed sandbox.html
var sandboxHTML string

// write answers with v. Whatever goes into the page is escaped.
func (b *sandbox) write(w http.ResponseWriter, v view) {
	nonce := rand.Text()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/html; charset=utf-8")
	// No form-action: Chromium also holds it against every redirect that follows the POST,
	// and where the partner's URI leads on to is not ours to know.
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if v.location != "" {
		h.Set("Location", v.location)
		w.WriteHeader(v.status)
		return
	}
	values := map[string]string{"nonce": nonce, "title": v.title, "text": v.text, "target": v.target}
	if v.message != nil {
		values["message"] = string(encodeJSON(v.message))
	}
	head, rest, _ := strings.Cut(sandboxHTML, "<!-- question -->")
	question, tail, _ := strings.Cut(rest, "<!-- /question -->")
	page := head + tail
	if s := v.asked; s != nil {
		page = head + question + tail
		expires := time.Unix(s.ExpiresAt, 0)
		left := max(int(time.Until(expires)/time.Second), 1)
		values["client"], values["user"] = s.ClientID, s.EndUserID
		values["institution"] = cmp.Or(s.InstitutionID, "any: a real page would let you choose")
		values["seconds"], values["left"] = strconv.Itoa(left), fmt.Sprintf("%d min %d s", left/60, left%60)
		values["expires"] = expires.UTC().Format("15:04:05 UTC")
		values["secret"], values["token"] = v.secret, b.formToken(v.secret)
	}
	w.WriteHeader(v.status)
	_, _ = io.WriteString(w, os.Expand(page, func(name string) string { return html.EscapeString(values[name]) }))
}
