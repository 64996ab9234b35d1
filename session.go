package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/clients"
	"authsession/internal/redirecturi"
	"authsession/internal/strictjson"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"
)

// session is the record in Redis, as JSON, for the consent page to read. A request's body gives the members that open
// leaves alone; "" is one not given.
type session struct {
	Version       int    `json:"v"`
	ID            string `json:"id"` // public name: a ULID in lower case
	ClientID      string `json:"client_id"`
	EndUserID     string `json:"end_user_id"`
	InstitutionID string `json:"institution_id,omitzero"`
	RedirectURI   string `json:"redirect_uri,omitzero"`
	CancelURI     string `json:"cancel_uri,omitzero"`

	Permissions   []string `json:"permissions,omitzero"` // nil: not given; empty only where a client may ask for none
	ArrangementID string   `json:"arrangement_id,omitzero"`

	CreatedAt int64 `json:"created_at"` // Unix seconds
	ExpiresAt int64 `json:"expires_at"` // Unix seconds, the key's EXPIRETIME
}

// open makes s a client's session from now on for ttl. It returns the secret that opens it: 130 random bits in letters
// and digits, which s does not hold.
func (s *session) open(clientID string, now time.Time, ttl time.Duration) (secret string) {
	s.Version = 1
	s.ID = strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
	s.ClientID = clientID
	s.CreatedAt = now.Unix()
	s.ExpiresAt = now.Add(ttl).Unix()
	return rand.Text()
}

// encode is s as JSON, as json.Marshal writes it. To marshal record and answer takes 4 to 6% off all requests a second,
// measured side by side: that code is large, and a request finds it out of the processor's caches.
func (s *session) encode() []byte {
	b := strconv.AppendInt(append(make([]byte, 0, 512), `{"v":`...), int64(s.Version), 10)
	b = appendText(b, `,"id":`, s.ID)
	b = appendText(b, `,"client_id":`, s.ClientID)
	b = appendText(b, `,"end_user_id":`, s.EndUserID)
	b = appendText(b, `,"institution_id":`, s.InstitutionID)
	b = appendText(b, `,"redirect_uri":`, s.RedirectURI)
	b = appendText(b, `,"cancel_uri":`, s.CancelURI)
	b = appendTexts(b, `,"permissions":`, s.Permissions)
	b = appendText(b, `,"arrangement_id":`, s.ArrangementID)
	b = strconv.AppendInt(append(b, `,"created_at":`...), s.CreatedAt, 10)
	b = strconv.AppendInt(append(b, `,"expires_at":`...), s.ExpiresAt, 10)
	return append(b, '}')
}

// appendText appends a member of a JSON object, unless its value is "", not given.
func appendText(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendQuoted(append(b, name...), value)
}

// appendTexts appends a member that is an array of strings, unless it is nil, not given.
func appendTexts(b []byte, name string, texts []string) []byte {
	if texts == nil {
		return b
	}
	b = append(append(b, name...), '[')
	for i, text := range texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendQuoted(b, text)
	}
	return append(b, ']')
}

// appendQuoted appends text as a JSON string. Invalid UTF-8, which only the cause of an error can have, becomes U+FFFD.
func appendQuoted(b []byte, text string) []byte {
	if plain(text) {
		return append(append(append(b, '"'), text...), '"')
	}
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

// plain tells whether text is printable ASCII that JSON does not escape. Most texts are, and are then not copied first.
func plain(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// hashSecret is the name in Redis of the session that secret opens.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

const maxUnknown = 10 // names of unknown members are logged

// bodyError is what is wrong with a body, for the caller to read.
type bodyError struct {
	name    string // the error's class in the answer
	message string
}

func (e *bodyError) Error() string { return e.message }

// parseBody reads a request's body. unknown is the names of members that are none of ours, for the log, whether it
// fails or not. The error is a *bodyError: for a body that is not one good object, or else for all members that break a
// rule, in the contract's order.
func parseBody(body []byte) (s session, unknown []string, err error) {
	fields := [...]struct {
		name  string
		value []byte  // nil: absent
		into  *string // nil: permissions, which is no string
		check func(string) error
	}{
		{name: "end_user_id", into: &s.EndUserID, check: checkEndUserID},
		{name: "institution_id", into: &s.InstitutionID, check: checkInstitutionID},
		{name: "redirect_uri", into: &s.RedirectURI, check: redirecturi.Check},
		{name: "cancel_uri", into: &s.CancelURI, check: redirecturi.Check},
		{name: "permissions"},
		{name: "arrangement_id", into: &s.ArrangementID, check: checkArrangementID},
	}
	err = strictjson.Object(body, func(name, value []byte) {
		for i := range fields {
			if fields[i].name == string(name) {
				fields[i].value = value
				return
			}
		}
		if len(unknown) < maxUnknown {
			unknown = append(unknown, string(name))
		}
	})
	if err != nil {
		return s, unknown, &bodyError{"bad_request", "the body " + err.Error()}
	}
	var broken []string
	errorName := "bad_request"
	for _, f := range fields {
		var err error
		if f.into == nil {
			s.Permissions, err = readPermissions(f.value)
		} else if *f.into, err = strictjson.Text(f.value); err == nil {
			err = f.check(*f.into)
		}
		if err == nil {
			continue
		}
		if f.name == "institution_id" && broken == nil {
			errorName = "invalid_institution_id"
		}
		broken = append(broken, f.name+" "+err.Error())
	}
	if broken != nil {
		return s, unknown, &bodyError{errorName, strings.Join(broken, "; ")}
	}
	return s, unknown, nil
}

// limit holds s, whose members are good, to what its client may do: where s names no permissions, it gets all of the
// client's. The error is a *bodyError for all that it may not, in the contract's order.
func (s *session) limit(c *clients.Client) error {
	var broken []string
	errorName := "bad_request"
	if !c.AllowsInstitution(s.InstitutionID) {
		errorName, broken = "invalid_institution_id", append(broken, "institution_id is not one of this client's")
	}
	if !c.AllowsURI(s.RedirectURI) {
		broken = append(broken, "redirect_uri is not one of this client's")
	}
	if !c.AllowsURI(s.CancelURI) {
		broken = append(broken, "cancel_uri is not one of this client's")
	}
	if !c.AllowsPermissions(s.Permissions) {
		broken = append(broken, "permissions must all be this client's")
	}
	if broken != nil {
		return &bodyError{errorName, strings.Join(broken, "; ")}
	}
	if s.Permissions == nil {
		s.Permissions = c.Permissions
	}
	return nil
}

func checkEndUserID(id string) error {
	if id == "" {
		return errors.New("is required: a string of 1 to 128 bytes")
	}
	return checkID(id, 128)
}

func checkInstitutionID(id string) error { return checkID(id, 64) }

func checkArrangementID(id string) error { return checkID(id, 128) }

// readPermissions returns nil for an absent value and null. An empty array is an error, so that a list which a caller
// has emptied never asks for everything.
func readPermissions(value []byte) ([]string, error) {
	names, err := strictjson.Texts(value)
	if err != nil || names == nil {
		return nil, err
	}
	if len(names) < 1 || len(names) > 64 {
		return nil, errors.New("must have 1 to 64 names: leave it out to give none")
	}
	for i, name := range names {
		if name == "" || checkID(name, 64) != nil {
			return nil, errors.New("must have names of 1 to 64 bytes of printable ASCII without space")
		}
		if slices.Contains(names[:i], name) {
			return nil, errors.New("must not have a name twice")
		}
	}
	return names, nil
}

// checkID takes up to most bytes of printable ASCII without space.
func checkID(id string, most int) error {
	if len(id) > most {
		return fmt.Errorf("must be at most %d bytes", most)
	}
	for i := range len(id) {
		if id[i] < '!' || id[i] > '~' {
			return errors.New("must be printable ASCII without space")
		}
	}
	return nil
}
