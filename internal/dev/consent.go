package dev

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"authsession/internal/redirecturi"
	"authsession/internal/seal"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

const cookieName = "authsession-sandbox"

// record has the members of a session's record that the page uses.
type record struct {
	Version       int      `json:"v"`
	ID            string   `json:"id"`
	ClientID      string   `json:"client_id"`
	EndUserID     string   `json:"end_user_id"`
	InstitutionID string   `json:"institution_id"`
	RedirectURI   string   `json:"redirect_uri"`
	CancelURI     string   `json:"cancel_uri"`
	Permissions   []string `json:"permissions"` // nil: not given
	ArrangementID string   `json:"arrangement_id"`
	ExpiresAt     int64    `json:"expires_at"` // Unix seconds
}

// show is GET /?sess_id=…, and the front page without sess_id. It leaves the session as it is, because people reload.
func (s *sandbox) show(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("sess_id") {
		s.writeFront(w)
		return
	}
	secret := r.URL.Query().Get("sess_id")
	rec, err := s.load(s.redis.Get, secret)
	if err != nil {
		s.fail(w, err, http.StatusNotFound, "")
		return
	}
	s.note(flow{secret: secret, record: rec, outcome: "its page is open"})
	browser, err := r.Cookie(cookieName)
	if err != nil {
		browser = &http.Cookie{Name: cookieName, Value: rand.Text(), Path: "/", HttpOnly: true,
			SameSite: http.SameSiteLaxMode}
		if r.Header.Get("Sec-Fetch-Dest") == "iframe" { // browsers send no Lax cookie in another site's frame
			browser.SameSite, browser.Secure, browser.Partitioned = http.SameSiteNoneMode, true, true
		}
		http.SetCookie(w, browser)
	}
	permissions := "all that the app may ask for"
	if rec.Permissions != nil {
		permissions = cmp.Or(strings.Join(rec.Permissions, ", "), "nothing")
	}
	expires := time.Unix(rec.ExpiresAt, 0).UTC()
	writePage(w, http.StatusOK, map[string]string{
		"title": "Share your data?", "text": "An app asks to read your data.",
		"client": rec.ClientID, "user": rec.EndUserID,
		"institution": cmp.Or(rec.InstitutionID, "any: a real page would let you choose"),
		"permissions": permissions,
		"arrangement": cmp.Or(rec.ArrangementID, "none: this is a new consent"),
		"seconds":     strconv.Itoa(int(time.Until(expires).Seconds()) + 1), "left": remaining(expires),
		"expires": expires.Format("2 January, 15:04:05 UTC"),
		"secret":  secret, "token": s.formToken(secret, browser.Value),
	})
}

// decide is the form's POST. Its action is approve, or the error_type of another outcome. A session is decided at most
// once: of two tabs one gets the record from GETDEL, or none if Redis's reply is lost.
func (s *sandbox) decide(w http.ResponseWriter, r *http.Request) {
	secret, host, action := r.PostFormValue("sess_id"), r.PostFormValue("host"), r.PostFormValue("action")
	browser, err := r.Cookie(cookieName)
	if err != nil || !hmac.Equal([]byte(r.PostFormValue("token")), []byte(s.formToken(secret, browser.Value))) ||
		action != "approve" && (errorTypes[action].code == "" || !strings.HasPrefix(action, "CONSENT_")) {
		writePage(w, http.StatusForbidden, map[string]string{"title": "Nothing was decided", "back": "/",
			"text": "This form is not from this page in this browser, or the browser keeps no cookies. Open the link again."})
		return
	}
	rec, err := s.load(s.redis.GetDel, secret)
	if err != nil { // the session existed when the form was made, and may be used up now
		s.fail(w, err, http.StatusGone, host)
		return
	}
	s.log.Info("sandbox decision", "action", action, "session", rec.ID)
	var location, message string
	outcome, text := "no consent: "+action, errorTypes[action].description
	if action == "approve" {
		id := cmp.Or(rec.ArrangementID, rand.Text()) // a renewed consent keeps its ID
		outcome, text = "approved", "The consent is "+id+"."
		location = addQuery(rec.RedirectURI, "consent_id="+url.QueryEscape(id))
		members := map[string]any{"isCompleted": true, "consentID": id}
		if location != "" {
			members["redirectURL"] = location
		}
		message = encode(members)
	} else {
		query, failed := s.failure(rec.ID, action)
		location, message = addQuery(rec.CancelURI, query), failed
	}
	s.note(flow{secret: secret, record: rec, outcome: outcome, ended: true})
	status := http.StatusOK
	if location != "" && host == "" { // otherwise the page shows the outcome, or posts it
		w.Header().Set("Location", location)
		status = http.StatusSeeOther
	}
	writePage(w, status, map[string]string{"title": strings.ToUpper(outcome[:1]) + outcome[1:], "text": text,
		"message": message, "host": host, "next": location, "back": "/"})
}

// load reads the record of a session by GET or GETDEL. It does not use the request's context, because a GETDEL must not
// end when the browser disconnects. The error is redis.Nil if there is no record.
func (s *sandbox) load(command func(context.Context, string) *redis.StringCmd, secret string) (rec record, err error) {
	hash := sha256.Sum256([]byte(secret))
	value, err := command(context.Background(), s.keyPrefix+hex.EncodeToString(hash[:])).Bytes()
	if err != nil {
		return rec, err
	}
	value, err = seal.Open(secret, value)
	if err == nil {
		err = json.Unmarshal(value, &rec)
	}
	if err == nil && rec.Version != 1 {
		err = fmt.Errorf("version %d", rec.Version)
	}
	if err != nil {
		return rec, fmt.Errorf("decoding the record: %w", err)
	}
	// The URIs are checked again, because others may write records, too.
	return rec, cmp.Or(redirecturi.Check(rec.RedirectURI), redirecturi.Check(rec.CancelURI))
}

// fail writes the page for a session that load did not return. status is for a session that does not exist: 404 when
// the page is opened, or 410 after its form, when the session may be used up and trying again is no use.
func (s *sandbox) fail(w http.ResponseWriter, err error, status int, host string) {
	id, advice := rand.Text(), "Start again where you came from."
	s.log.Info("sandbox has no session", "error_id", id, "cause", err.Error())
	kind := "LINK_INVALID_SESSION"
	if !errors.Is(err, redis.Nil) {
		kind = "LINK_INTERNAL_ERROR"
		if status == http.StatusNotFound {
			advice = "Try again in a moment."
		}
		status = http.StatusServiceUnavailable
	}
	_, message := s.failure(id, kind)
	writePage(w, status, map[string]string{"title": "This link does not work", "back": "/",
		"text": errorTypes[kind].description + " " + advice, "message": message, "host": host})
}

// formToken proves that a form comes from the page that show made for this session and this browser, which its cookie
// names. The Origin header proves nothing, because browsers send "null" with the policy no-referrer.
func (s *sandbox) formToken(secret, browser string) string {
	mac := hmac.New(sha256.New, s.formKey)
	mac.Write([]byte(secret + " " + browser))
	return hex.EncodeToString(mac.Sum(nil))
}

// addQuery adds query to uri's own and changes no byte of uri. It returns "" for "".
func addQuery(uri, query string) string {
	switch {
	case uri == "":
		return ""
	case strings.Contains(uri, "?"):
		return uri + "&" + query
	}
	return uri + "?" + query
}
