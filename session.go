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

	"github.com/oklog/ulid/v2"
)

// session is the record in Redis, which the consent page reads as JSON. A request's body gives the members from
// EndUserID to ArrangementID; "" stands for a member that is not given.
type session struct {
	ID            string // public name: a ULID in lower case
	ClientID      string
	EndUserID     string
	InstitutionID string
	RedirectURI   string
	CancelURI     string
	Permissions   []string // nil: not given; empty only where the client may ask for none
	ArrangementID string
	CreatedAt     int64 // Unix seconds
	ExpiresAt     int64 // Unix seconds, the key's EXPIRETIME
}

// open makes s a client's session that begins now and lasts for ttl. It returns the secret that opens the session: 130
// random bits in letters and digits. s does not hold it.
func (s *session) open(clientID string, now time.Time, ttl time.Duration) (secret string) {
	s.ID = strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
	s.ClientID = clientID
	s.CreatedAt = now.Unix()
	s.ExpiresAt = now.Add(ttl).Unix()
	return rand.Text()
}

// encode returns the record.
func (s *session) encode() []byte {
	b := append(make([]byte, 0, 512), `{"v":1`...)
	b = strictjson.AppendMember(b, `,"id":`, s.ID)
	b = strictjson.AppendMember(b, `,"client_id":`, s.ClientID)
	b = strictjson.AppendMember(b, `,"end_user_id":`, s.EndUserID)
	b = strictjson.AppendMember(b, `,"institution_id":`, s.InstitutionID)
	b = strictjson.AppendMember(b, `,"redirect_uri":`, s.RedirectURI)
	b = strictjson.AppendMember(b, `,"cancel_uri":`, s.CancelURI)
	b = strictjson.AppendStrings(b, `,"permissions":`, s.Permissions)
	b = strictjson.AppendMember(b, `,"arrangement_id":`, s.ArrangementID)
	b = strconv.AppendInt(append(b, `,"created_at":`...), s.CreatedAt, 10)
	b = strconv.AppendInt(append(b, `,"expires_at":`...), s.ExpiresAt, 10)
	return append(b, '}')
}

// answer returns the JSON for the partner. authURL ends in "sess_id=".
func (s *session) answer(authURL, secret string) []byte {
	b := strictjson.AppendMember(make([]byte, 0, 256), `{"auth_url":`, authURL+secret)
	b = strconv.AppendInt(append(b, `,"expires_at":`...), s.ExpiresAt, 10)
	b = strictjson.AppendMember(b, `,"id":`, s.ID)
	b = strictjson.AppendMember(b, `,"session_id":`, secret)
	return append(b, "}\n"...) // the line feed is for people's terminals
}

// hashSecret returns the name in Redis of the session that secret opens.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// bodyError is what is wrong with a body, for the caller to read: everything that breaks a rule, in the contract's
// order.
type bodyError struct {
	name     string // the error's class, that of the first broken member
	messages []string
}

func (e *bodyError) Error() string { return strings.Join(e.messages, "; ") }

// add notes that a member breaks a rule; nil is no error.
func (e *bodyError) add(member string, err error) {
	if err == nil {
		return
	}
	if e.messages == nil && member == "institution_id" {
		e.name = "invalid_institution_id"
	} else if e.messages == nil {
		e.name = "bad_request"
	}
	e.messages = append(e.messages, member+" "+err.Error())
}

func (e *bodyError) orNil() error {
	if e.messages == nil {
		return nil
	}
	return e
}

const maxUnknown = 10 // names of unknown members are logged

// parseBody reads a request's body. unknown is the names of unknown members for the log, in case of an error too. The
// error is a *bodyError.
func parseBody(body []byte) (s session, unknown []string, err error) {
	var endUser, institution, redirect, cancel, permissions, arrangement []byte // nil: absent
	var broken bodyError
	err = strictjson.Object(body, func(name, value []byte) {
		switch string(name) {
		case "end_user_id":
			endUser = value
		case "institution_id":
			institution = value
		case "redirect_uri":
			redirect = value
		case "cancel_uri":
			cancel = value
		case "permissions":
			permissions = value
		case "arrangement_id":
			arrangement = value
		default:
			if len(unknown) < maxUnknown {
				unknown = append(unknown, string(name))
			}
		}
	})
	if err != nil {
		broken.add("the body", err)
		return s, unknown, &broken
	}
	s.EndUserID, err = parseID(endUser, 128)
	if err == nil && s.EndUserID == "" {
		err = errors.New("is required: a string of 1 to 128 bytes")
	}
	broken.add("end_user_id", err)
	s.InstitutionID, err = parseID(institution, 64)
	broken.add("institution_id", err)
	s.RedirectURI, err = parseURI(redirect)
	broken.add("redirect_uri", err)
	s.CancelURI, err = parseURI(cancel)
	broken.add("cancel_uri", err)
	s.Permissions, err = parsePermissions(permissions)
	broken.add("permissions", err)
	s.ArrangementID, err = parseID(arrangement, 128)
	broken.add("arrangement_id", err)
	return s, unknown, broken.orNil()
}

var errForeign = errors.New("is not one of this client's")

// limit applies the client's rules to s, whose members are valid. If s names no permissions, it gets all of the
// client's. The error is a *bodyError.
func (s *session) limit(c *clients.Client) error {
	var broken bodyError
	if !c.AllowsInstitution(s.InstitutionID) {
		broken.add("institution_id", errForeign)
	}
	if !c.AllowsURI(s.RedirectURI) {
		broken.add("redirect_uri", errForeign)
	}
	if !c.AllowsURI(s.CancelURI) {
		broken.add("cancel_uri", errForeign)
	}
	if !c.AllowsPermissions(s.Permissions) {
		broken.add("permissions", errors.New("must all be this client's"))
	}
	if s.Permissions == nil {
		s.Permissions = c.Permissions
	}
	return broken.orNil()
}

// parseID takes up to size bytes of printable ASCII without space.
func parseID(value []byte, size int) (string, error) {
	id, err := strictjson.Text(value)
	if err == nil {
		err = checkID(id, size)
	}
	return id, err
}

func parseURI(value []byte) (string, error) {
	uri, err := strictjson.Text(value)
	if err == nil {
		err = redirecturi.Check(uri)
	}
	return uri, err
}

// parsePermissions returns nil for an absent value and null. An empty array is an error, so that an emptied list never
// asks for everything.
func parsePermissions(value []byte) ([]string, error) {
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

func checkID(id string, size int) error {
	if len(id) > size {
		return fmt.Errorf("must be at most %d bytes", size)
	}
	for i := range len(id) {
		if id[i] < '!' || id[i] > '~' {
			return errors.New("must be printable ASCII without space")
		}
	}
	return nil
}
