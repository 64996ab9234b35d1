package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// sessionRequest is a body of POST /auth/session; "" is a member not given.
type sessionRequest struct {
	endUserID     string
	institutionID string
	redirectURI   string
	cancelURI     string
}

// session is the record in Redis, as JSON, for the consent page to read.
type session struct {
	Version       int    `json:"v"`
	ID            string `json:"id"` // public name: a ULID in lower case
	ClientID      string `json:"client_id"`
	EndUserID     string `json:"end_user_id"`
	InstitutionID string `json:"institution_id,omitempty"`
	RedirectURI   string `json:"redirect_uri,omitempty"`
	CancelURI     string `json:"cancel_uri,omitempty"`
	CreatedAt     int64  `json:"created_at"` // Unix seconds
	ExpiresAt     int64  `json:"expires_at"` // Unix seconds, the key's EXPIRETIME
}

// newSession is r's session for a client, and the secret that opens it: 130 random
// bits, in letters and digits. The secret is not in the session.
func newSession(r sessionRequest, clientID string, now time.Time, ttl time.Duration) (session, string) {
	return session{
		Version:       1,
		ID:            strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()),
		ClientID:      clientID,
		EndUserID:     r.endUserID,
		InstitutionID: r.institutionID,
		RedirectURI:   r.redirectURI,
		CancelURI:     r.cancelURI,
		CreatedAt:     now.Unix(),
		ExpiresAt:     now.Add(ttl).Unix(),
	}, rand.Text()
}

// encode is the record as JSON. encoding/json says the same (a test compares them) at six
// times the cost.
func (s *session) encode() []byte {
	b := make([]byte, 0, 256+len(s.ClientID)+len(s.EndUserID)+len(s.RedirectURI)+len(s.CancelURI))
	b = strconv.AppendInt(append(b, `{"v":`...), int64(s.Version), 10)
	b = appendString(append(b, `,"id":`...), s.ID)
	b = appendString(append(b, `,"client_id":`...), s.ClientID)
	b = appendString(append(b, `,"end_user_id":`...), s.EndUserID)
	if s.InstitutionID != "" {
		b = appendString(append(b, `,"institution_id":`...), s.InstitutionID)
	}
	if s.RedirectURI != "" {
		b = appendString(append(b, `,"redirect_uri":`...), s.RedirectURI)
	}
	if s.CancelURI != "" {
		b = appendString(append(b, `,"cancel_uri":`...), s.CancelURI)
	}
	b = strconv.AppendInt(append(b, `,"created_at":`...), s.CreatedAt, 10)
	b = strconv.AppendInt(append(b, `,"expires_at":`...), s.ExpiresAt, 10)
	return append(b, '}')
}

// sessionKey is where the session lies that secret opens.
func sessionKey(prefix, secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return prefix + hex.EncodeToString(sum[:])
}

// At most this many names of unknown members, of this many bytes each, are logged.
const (
	maxUnknown     = 10
	maxUnknownName = 64
)

// parseSessionRequest reads a body. unknown is the names of members that are none of
// ours, to be logged, whether it fails or not. Its error is an *apiError: for a body that is not
// one good object, or else for all fields that break a rule, in the contract's order.
func parseSessionRequest(body []byte) (r sessionRequest, unknown []string, err error) {
	fields := [...]struct {
		name  string
		into  *string
		check func(string) error
		err   error
	}{
		{name: "end_user_id", into: &r.endUserID, check: checkEndUserID},
		{name: "institution_id", into: &r.institutionID, check: checkInstitutionID},
		{name: "redirect_uri", into: &r.redirectURI, check: checkURI},
		{name: "cancel_uri", into: &r.cancelURI, check: checkURI},
	}
	err = scanObject(body, func(name, value []byte) {
		for i := range fields {
			if f := &fields[i]; f.name == string(name) {
				*f.into, f.err = text(value)
				return
			}
		}
		if len(unknown) < maxUnknown {
			unknown = append(unknown, strings.ToValidUTF8(string(name[:min(len(name), maxUnknownName)]), ""))
		}
	})
	if err != nil {
		return r, unknown, badRequest("the body " + err.Error())
	}
	var broken []string
	name := "bad_request"
	for _, f := range fields {
		if f.err == nil {
			f.err = f.check(*f.into)
		}
		if f.err == nil {
			continue
		}
		if f.name == "institution_id" && broken == nil {
			name = "invalid_institution_id"
		}
		broken = append(broken, f.name+" "+f.err.Error())
	}
	if broken != nil {
		return r, unknown, &apiError{status: http.StatusBadRequest, name: name, message: strings.Join(broken, "; ")}
	}
	return r, unknown, nil
}

// rule is a broken rule, worded to follow the member's name.
type rule string

func (r rule) Error() string { return string(r) }

func checkEndUserID(id string) error {
	if id == "" {
		return rule("is required: a string of 1 to 128 bytes")
	}
	return checkID(id, 128)
}

func checkInstitutionID(id string) error { return checkID(id, 64) }

// checkID takes up to most bytes of printable ASCII without space; "" is not given.
func checkID(id string, most int) error {
	if len(id) > most {
		return rule(fmt.Sprintf("must be at most %d bytes", most))
	}
	for i := range len(id) {
		if id[i] < '!' || id[i] > '~' {
			return rule("must be printable ASCII without space")
		}
	}
	return nil
}
