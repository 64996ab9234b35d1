// Package sandbox plays the consent page in -dev, so that the whole flow can be clicked through.
//
// It is also the example for that page's author: all it knows of a session is the record in Redis, which it GETs to
// show the page and GETDELs to end the flow. A real page also makes sure who the end user is, and says in
// frame-ancestors who may frame it: here anyone may.
package sandbox

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"authsession/internal/redirecturi"
	"authsession/internal/seal"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

const (
	maxForm    = 64 << 10 // bytes
	cookieName = "authsession-sandbox"
)

// Sandbox is the consent page, and around it a front page to begin at and a partner's page to come back to.
type Sandbox struct {
	redis   redis.Cmdable
	prefix  string        // of the keys of records
	timeout time.Duration // for what Redis does for one request
	log     *slog.Logger
	formKey []byte // signs forms; replicas of a real page share it

	mu   sync.Mutex
	last []flow // sessions, the newest first
}

// New returns a page over the Redis, and under the prefix, where the service writes its records.
func New(client redis.Cmdable, prefix string, timeout time.Duration, log *slog.Logger) *Sandbox {
	return &Sandbox{redis: client, prefix: prefix, timeout: timeout, log: log, formKey: []byte(rand.Text())}
}

// Handler serves the page at self, a URL up to and with the path /. The front page creates sessions at the service that
// has the URL api, with token.
func (b *Sandbox) Handler(self, api, token string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("sess_id") {
			b.write(w, b.show(r))
		} else {
			b.write(w, front())
		}
	})
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		b.write(w, b.decide(r))
	})
	mux.HandleFunc("GET /sessions", b.list)
	create := func(w http.ResponseWriter, r *http.Request) { b.write(w, create(r.Context(), self, api, token)) }
	mux.Handle("POST /sessions", http.NewCrossOriginProtection().Handler(http.HandlerFunc(create)))
	for _, path := range []string{"/callback", "/callback/cancelled"} { // of Example
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { b.write(w, callback(r)) })
	}
	return mux
}

// record is what the page uses of a session's record.
type record struct {
	Version       int    `json:"v"`
	ID            string `json:"id"`
	ClientID      string `json:"client_id"`
	EndUserID     string `json:"end_user_id"`
	InstitutionID string `json:"institution_id"`
	RedirectURI   string `json:"redirect_uri"`
	CancelURI     string `json:"cancel_uri"`

	Permissions   []string `json:"permissions"` // nil: not given
	ArrangementID string   `json:"arrangement_id"`

	ExpiresAt int64 `json:"expires_at"` // Unix seconds
}

// view is what the browser gets.
type view struct {
	status   int
	location string // of a redirect; "": the page
	title    string
	text     string
	message  map[string]any // to the page that frames or opened this one; nil: none
	host     string         // the only origin that may read message; "": the script finds out
	next     string         // where a popup goes after its message; "": it stays

	cookie *http.Cookie      // nil: none
	parts  []string          // of pageHTML, besides what every page has
	values map[string]string // that they show
}

// show is GET /?sess_id=…. It leaves the session as it is: people reload.
func (b *Sandbox) show(r *http.Request) view {
	secret := r.URL.Query().Get("sess_id")
	s, err := b.load(r.Context(), b.redis.Get, secret)
	if err != nil {
		return b.failed(err, http.StatusNotFound, "Try again in a moment.")
	}
	b.note(secret, func(f *flow) { f.outcome = "its page is open" })
	v := view{status: http.StatusOK, title: "Share your data?", text: "An app asks to read your data.",
		parts: []string{"question"}}
	browser := rand.Text()
	if given, err := r.Cookie(cookieName); err == nil {
		browser = given.Value
	} else {
		v.cookie = &http.Cookie{Name: cookieName, Value: browser, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
		if r.Header.Get("Sec-Fetch-Dest") == "iframe" { // where another site's page is around it, Lax is never sent
			v.cookie.SameSite, v.cookie.Secure, v.cookie.Partitioned = http.SameSiteNoneMode, true, true
		}
	}
	expires := time.Unix(s.ExpiresAt, 0)
	left := max(time.Until(expires), time.Second)
	layout := "15:04:05 UTC"
	if left >= 24*time.Hour {
		layout = "2 January, 15:04 UTC"
	}
	permissions := "all that the app may ask for"
	if s.Permissions != nil {
		permissions = cmp.Or(strings.Join(s.Permissions, ", "), "nothing")
	}
	v.values = map[string]string{
		"client": s.ClientID, "user": s.EndUserID,
		"institution": cmp.Or(s.InstitutionID, "any: a real page would let you choose"),
		"permissions": permissions,
		"arrangement": cmp.Or(s.ArrangementID, "none: this is a new consent"),
		"seconds":     strconv.Itoa(int(left / time.Second)), "left": remaining(left),
		"expires": expires.UTC().Format(layout),
		"secret":  secret, "token": b.formToken(secret, browser),
	}
	return v
}

// decide is the form's POST. GETDEL makes it happen once: of two tabs one gets the record. Where Redis's reply is lost
// on the way, neither does.
func (b *Sandbox) decide(r *http.Request) view {
	secret, action := r.PostFormValue("sess_id"), r.PostFormValue("action")
	ours := func(c *http.Cookie) bool {
		return hmac.Equal([]byte(r.PostFormValue("token")), []byte(b.formToken(secret, c.Value)))
	}
	switch {
	case !slices.ContainsFunc(r.CookiesNamed(cookieName), ours):
		return view{status: http.StatusForbidden, title: "Nothing was decided",
			text: "This form is not from this page in this browser, or the browser keeps no cookies. Open the link again."}
	case action != "approve" && action != "cancel":
		return view{status: http.StatusBadRequest, title: "Nothing was decided",
			text: "The form names neither Approve nor Cancel. Open the link again."}
	}
	host := r.PostFormValue("host")
	s, err := b.load(r.Context(), b.redis.GetDel, secret)
	if err != nil { // the session was there when the form was made, and may be used up
		v := b.failed(err, http.StatusGone, "Start again where you came from.")
		v.host = host
		return v
	}
	b.log.Info("sandbox decision", "action", action, "session", s.ID)
	v := view{status: http.StatusSeeOther, host: host}
	if action == "approve" {
		id := cmp.Or(s.ArrangementID, rand.Text()) // what is renewed stays what it is
		v.title, v.text = "Approved", "The consent is "+id+"."
		v.location = addQuery(s.RedirectURI, "consent_id="+url.QueryEscape(id))
		v.message = map[string]any{"isCompleted": true, "consentID": id}
		if v.location != "" {
			v.message["redirectURL"] = v.location
		}
	} else {
		query, message := failure(s.ID, "access_denied", "CONSENT_ENDUSER_DENIED", "The end user cancelled.")
		v.title, v.text, v.message = "Cancelled", "Nothing is shared.", message
		v.location = addQuery(s.CancelURI, query)
	}
	b.note(secret, func(f *flow) { f.outcome, f.ended = strings.ToLower(v.title), true })
	if v.location == "" || host != "" { // the page tells, or its message does
		v.status, v.location, v.next = http.StatusOK, "", v.location
	}
	return v
}

// load reads the record that secret opens, by GET or GETDEL. A browser that goes away does not stop it: its end user
// has decided.
func (b *Sandbox) load(
	ctx context.Context, command func(context.Context, string) *redis.StringCmd, secret string,
) (*record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.timeout)
	defer cancel()
	hash := sha256.Sum256([]byte(secret))
	value, err := command(ctx, b.prefix+hex.EncodeToString(hash[:])).Bytes()
	if err != nil {
		return nil, err
	}
	if value, err = seal.Open(secret, value); err != nil {
		return nil, fmt.Errorf("opening the record: %w", err)
	}
	s := &record{}
	if err := json.Unmarshal(value, s); err != nil {
		return nil, fmt.Errorf("decoding the record: %w", err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("the record has version %d", s.Version)
	}
	// The service has checked the URIs, but others may write there too.
	if err := cmp.Or(redirecturi.Check(s.RedirectURI), redirecturi.Check(s.CancelURI)); err != nil {
		return nil, fmt.Errorf("a URI of the record %w", err)
	}
	return s, nil
}

// failed is the page for a session that can't be had. absent is the status of one that is not there; advice is for one
// that can't be read.
func (b *Sandbox) failed(err error, absent int, advice string) view {
	id := rand.Text()
	if !errors.Is(err, redis.Nil) {
		b.log.Error("sandbox can't read a session", "error_id", id, "cause", err.Error())
		_, message := failure(id, "server_error", "LINK_INTERNAL_ERROR", "The session can't be read.")
		return view{status: http.StatusServiceUnavailable, title: "Not now",
			text: "The session can't be read. " + advice, message: message}
	}
	b.log.Info("sandbox has no session", "error_id", id)
	_, message := failure(id, "invalid_request", "LINK_INVALID_SESSION",
		"The session has expired, was used, or never was.")
	return view{status: absent, title: "This link does not work", message: message,
		text: "Its session has expired, was used, or never was. Start again where you came from."}
}

// formToken shows that a form comes from a page that show made for this very session and for this browser, which its
// cookie names: one that somebody else has had made is worth nothing here. The Origin header can't show it: with
// no-referrer browsers send "null" there.
func (b *Sandbox) formToken(secret, browser string) string {
	mac := hmac.New(sha256.New, b.formKey)
	mac.Write([]byte(secret + " " + browser))
	return hex.EncodeToString(mac.Sum(nil))
}

// failure says why there is no consent: in OAuth's names for a URI's query, and in those of the reference platform's
// browser SDK for a message. id is in the log.
func failure(id, code, kind, description string) (query string, message map[string]any) {
	const uri = "https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2.1"
	values := url.Values{
		"error": {code}, "error_type": {kind}, "error_id": {id}, "error_description": {description}, "error_uri": {uri},
	}
	return values.Encode(), map[string]any{
		"isCompleted": false,
		"error":       code, "errorType": kind, "errorID": id, "errorDescription": description, "errorURI": uri,
	}
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

// pageHTML has $names, which os.Expand fills in, and parts between marks, which only some pages have. html/template
// would add 8 MB, a half, to the binary: with it the linker can't drop methods that nobody calls.
//
//go:embed sandbox.html
var pageHTML string

// write answers with v. Whatever goes into the page is escaped.
func (b *Sandbox) write(w http.ResponseWriter, v view) {
	nonce := rand.Text()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/html; charset=utf-8")
	// There is no form-action. Chromium applies it to every redirect that follows the POST, and where the partner's
	// URI leads on to is not ours to know.
	policy := "default-src 'none'; base-uri 'none'; script-src 'nonce-" + nonce + "'; style-src 'nonce-" + nonce + "'"
	if slices.Contains(v.parts, "sessions") {
		policy += "; connect-src 'self'"
	}
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if v.cookie != nil {
		http.SetCookie(w, v.cookie)
	}
	if v.location != "" {
		h.Set("Location", v.location)
		w.WriteHeader(v.status)
		return
	}
	values := map[string]string{"nonce": nonce, "title": v.title, "text": v.text, "host": v.host, "next": v.next}
	maps.Copy(values, v.values)
	if v.message != nil {
		message, err := json.Marshal(v.message)
		if err != nil {
			panic(err) // of strings and a bool
		}
		values["message"] = string(message)
	}
	page, rest, _ := strings.Cut(pageHTML, "<!-- parts -->")
	rest, tail, _ := strings.Cut(rest, "<!-- /parts -->")
	for _, name := range v.parts {
		_, part, _ := strings.Cut(rest, "<!-- "+name+" -->")
		part, _, _ = strings.Cut(part, "<!-- / -->")
		page += part
	}
	w.WriteHeader(v.status)
	escaped := func(name string) string { return html.EscapeString(values[name]) }
	_, _ = io.WriteString(w, os.Expand(page+tail, escaped))
}
