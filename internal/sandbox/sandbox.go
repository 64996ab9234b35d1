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
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"authsession/internal/redirecturi"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

const maxForm = 64 << 10 // bytes

// Sandbox is the consent page.
type Sandbox struct {
	redis   redis.Cmdable
	prefix  string        // of the keys of records
	timeout time.Duration // for what Redis does for one request
	log     *slog.Logger
	formKey []byte // signs forms; replicas of a real page share it
}

// New returns a page over the Redis, and under the prefix, where the service writes its records.
func New(client redis.Cmdable, prefix string, timeout time.Duration, log *slog.Logger) *Sandbox {
	return &Sandbox{redis: client, prefix: prefix, timeout: timeout, log: log, formKey: []byte(rand.Text())}
}

// Handler serves the page at /.
func (b *Sandbox) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { b.write(w, b.show(r)) })
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		b.write(w, b.decide(r))
	})
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

	Permissions   []string `json:"permissions"`
	ArrangementID string   `json:"arrangement_id"`

	ExpiresAt int64 `json:"expires_at"` // Unix seconds
}

// view is what the browser gets.
type view struct {
	status   int
	location string // of a redirect; "": the page
	title    string
	text     string
	message  map[string]any // to the page that frames this one; nil: none
	target   string         // the only origin that may read message

	asked  *record // what there is to decide; nil: nothing
	secret string  // that opened it
}

// show is GET /?sess_id=…. It leaves the session as it is: people reload.
func (b *Sandbox) show(r *http.Request) view {
	secret := r.URL.Query().Get("sess_id")
	s, err := b.load(r, b.redis.Get, secret)
	if err != nil {
		return b.failed(err, http.StatusNotFound)
	}
	return view{status: http.StatusOK, title: "Share your data?", text: "An app asks to read your data.",
		asked: s, secret: secret}
}

// decide is the form's POST. GETDEL makes it happen once: of two tabs one gets the record. Where Redis's reply is lost
// on the way, neither does.
func (b *Sandbox) decide(r *http.Request) view {
	secret, action := r.PostFormValue("sess_id"), r.PostFormValue("action")
	switch {
	case !hmac.Equal([]byte(r.PostFormValue("token")), []byte(b.formToken(secret))):
		return view{status: http.StatusForbidden, title: "Nothing was decided",
			text: "This form is not from this page, or from before its restart. Open the link again."}
	case action != "approve" && action != "cancel":
		return view{status: http.StatusBadRequest, title: "Nothing was decided",
			text: "The form names neither Approve nor Cancel. Open the link again."}
	}
	s, err := b.load(r, b.redis.GetDel, secret)
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
		query, message := failure("access_denied", "CONSENT_ENDUSER_DENIED", "The end user cancelled.")
		v = view{title: "Cancelled", text: "Nothing is shared.", message: message, target: origin(s.CancelURI, s.RedirectURI)}
		v.location = addQuery(s.CancelURI, query)
	}
	v.status = http.StatusSeeOther
	if v.location == "" || r.PostFormValue("framed") != "" { // the page tells, or its message does
		v.status, v.location = http.StatusOK, ""
	}
	return v
}

// load reads the record that secret opens, by GET or GETDEL. A browser that goes away does not stop it: its end user
// has decided.
func (b *Sandbox) load(
	r *http.Request, command func(context.Context, string) *redis.StringCmd, secret string,
) (*record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), b.timeout)
	defer cancel()
	hash := sha256.Sum256([]byte(secret))
	value, err := command(ctx, b.prefix+hex.EncodeToString(hash[:])).Bytes()
	if err != nil {
		return nil, err
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

// failed is the page for a session that can't be had; absent is the status of one that is not there.
func (b *Sandbox) failed(err error, absent int) view {
	if !errors.Is(err, redis.Nil) {
		b.log.Error("sandbox has no session", "cause", err.Error())
		return view{status: http.StatusServiceUnavailable, title: "Not now",
			text: "The session can't be read. Try again in a moment."}
	}
	_, message := failure("invalid_request", "LINK_INVALID_SESSION", "The session has expired, was used, or never was.")
	return view{status: absent, title: "This link does not work",
		text:    "Its session has expired, was used, or never was. Start again where you came from.",
		message: message, target: "*"} // nobody knows any more whose it was
}

// formToken shows that a form comes from a page that show made for this very session. The Origin header can't: with
// no-referrer browsers send "null" there.
func (b *Sandbox) formToken(secret string) string {
	mac := hmac.New(sha256.New, b.formKey)
	mac.Write([]byte(secret))
	return hex.EncodeToString(mac.Sum(nil))
}

// failure says why there is no consent: in OAuth's names for a URI's query, and in those of the reference platform's
// browser SDK for a message.
func failure(code, kind, description string) (query string, message map[string]any) {
	id, uri := rand.Text(), "https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2.1"
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

// origin is that of the first URI given; "*", any, where none is or an app's has none.
func origin(uris ...string) string {
	u, err := url.Parse(cmp.Or(uris...))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return "*"
	}
	return u.Scheme + "://" + u.Host
}

// pageHTML has $names, which os.Expand fills in, and a part between two marks that stays only while there is something
// to decide. html/template would add 8 MB, a half, to the binary: with it the linker can't drop methods that nobody
// calls.
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
	h.Set("Content-Security-Policy",
		"default-src 'none'; base-uri 'none'; script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if v.location != "" {
		h.Set("Location", v.location)
		w.WriteHeader(v.status)
		return
	}
	values := map[string]string{"nonce": nonce, "title": v.title, "text": v.text, "target": v.target}
	if v.message != nil {
		message, err := json.Marshal(v.message)
		if err != nil {
			panic(err) // of strings and a bool
		}
		values["message"] = string(message)
	}
	head, rest, _ := strings.Cut(pageHTML, "<!-- question -->")
	question, tail, _ := strings.Cut(rest, "<!-- /question -->")
	page := head + tail
	if s := v.asked; s != nil {
		page = head + question + tail
		expires := time.Unix(s.ExpiresAt, 0)
		left := max(int(time.Until(expires)/time.Second), 1)
		values["client"], values["user"] = s.ClientID, s.EndUserID
		values["institution"] = cmp.Or(s.InstitutionID, "any: a real page would let you choose")
		values["permissions"] = cmp.Or(strings.Join(s.Permissions, ", "), "all that the app may ask for")
		values["arrangement"] = cmp.Or(s.ArrangementID, "none: this is a new consent")
		values["seconds"], values["left"] = strconv.Itoa(left), fmt.Sprintf("%d min %d s", left/60, left%60)
		values["expires"] = expires.UTC().Format("15:04:05 UTC")
		values["secret"], values["token"] = v.secret, b.formToken(v.secret)
	}
	w.WriteHeader(v.status)
	escaped := func(name string) string { return html.EscapeString(values[name]) }
	_, _ = io.WriteString(w, os.Expand(page, escaped))
}
