package clients

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/redirecturi"
	"authsession/internal/strictjson"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/time/rate"
)

const (
	maxName        = 128 // bytes, as in tokens
	maxPermissions = 64  // as in a request
	maxPerMinute   = 1_000_000
)

// rules are the members of a client, by types that check them. The zero value of a member means that it is absent.
type rules struct {
	RedirectURIs      uris          `json:"redirect_uris"`
	InstitutionIDs    ids           `json:"institution_ids"`
	Permissions       ids           `json:"permissions"`
	SessionTTL        time.Duration `json:"session_ttl"`
	SessionsPerMinute perMinute     `json:"sessions_per_minute"`
}

type (
	uris      []string
	ids       []string
	perMinute int
)

func (u *uris) UnmarshalJSON(value []byte) (err error) {
	*u, err = unmarshalTexts(value, func(uri string) error {
		if uri == "" || strings.Contains(uri, "*") {
			return errors.New("must be a URI without *")
		}
		return redirecturi.Check(uri)
	})
	return err
}

func (i *ids) UnmarshalJSON(value []byte) (err error) {
	*i, err = unmarshalTexts(value, func(id string) error {
		isForeign := func(c rune) bool { return c < '!' || c > '~' }
		if len(id) < 1 || len(id) > 64 || strings.ContainsFunc(id, isForeign) {
			return errors.New("must be 1 to 64 bytes of printable ASCII without space")
		}
		return nil
	})
	return err
}

func (p *perMinute) UnmarshalJSON(value []byte) error {
	n, err := strconv.Atoi(string(value))
	if err != nil || n < 1 || n > maxPerMinute {
		return fmt.Errorf("must be a number from 1 to %d", maxPerMinute)
	}
	*p = perMinute(n)
	return nil
}

// unmarshalTexts returns an array of strings that all pass check. It rejects null.
func unmarshalTexts(value []byte, check func(string) error) ([]string, error) {
	texts, err := strictjson.Texts(value)
	if err != nil || texts == nil {
		return nil, errors.New("must be an array of strings")
	}
	for i, text := range texts {
		if err := check(text); err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
	}
	return texts, nil
}

// parse returns the clients of a file. An error names its place in the file by a JSON pointer, such as
// "/clients/acme/session_ttl". A client whose rate has not changed keeps its current quota.
func (f *File) parse(data []byte) (map[string]*Client, error) {
	var document struct {
		Clients map[string]*rules `json:"clients"`
	}
	unmarshalTTL := json.UnmarshalFunc(func(value []byte, ttl *time.Duration) error {
		text, _ := strictjson.Text(value)
		var err error
		if *ttl, err = time.ParseDuration(text); err != nil || *ttl < f.minTTL || *ttl > f.maxTTL {
			return fmt.Errorf("must be a duration from %s to %s", f.minTTL, f.maxTTL)
		}
		return nil
	})
	err := json.Unmarshal(data, &document, json.RejectUnknownMembers(true), json.WithUnmarshalers(unmarshalTTL))
	if err != nil {
		return nil, withPlace(err)
	}
	if document.Clients == nil { // absent or null
		return nil, errors.New(`must have the member "clients", a JSON object`)
	}
	current, clients := *f.clients.Load(), map[string]*Client{}
	for _, name := range slices.Sorted(maps.Keys(document.Clients)) { // so that the same file has the same error
		r, place := document.Clients[name], jsontext.Pointer("/clients").AppendToken(name)
		if r == nil { // null
			return nil, fmt.Errorf("%+.300q: %w", place, errNotObject)
		}
		distinct := slices.Compact(slices.Sorted(slices.Values(r.Permissions)))
		switch {
		case len(name) < 1 || len(name) > maxName:
			return nil, fmt.Errorf("%+.300q: must have a name of 1 to %d bytes", place, maxName)
		case len(r.Permissions) > maxPermissions || len(r.Permissions) > len(distinct):
			return nil, fmt.Errorf("%+q: must be at most %d names, none twice",
				place.AppendToken("permissions"), maxPermissions)
		}
		c := &Client{Name: name, Permissions: r.Permissions, SessionTTL: r.SessionTTL,
			redirectURIs: r.RedirectURIs, institutionIDs: r.InstitutionIDs}
		if n := int(r.SessionsPerMinute); n > 0 {
			c.quota = &quota{perMinute: n, limiters: map[string]*rate.Limiter{}}
			if old := current[name]; old != nil && old.quota != nil && old.quota.perMinute == n {
				c.quota = old.quota
			}
		}
		clients[name] = c
	}
	return clients, nil
}

var errNotObject = errors.New("must be a JSON object")

// withPlace formats an error of json.Unmarshal, whose own message may quote the file at length.
func withPlace(err error) error {
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("%+.300q, byte %d: must be valid JSON: %w", e.JSONPointer, e.ByteOffset, e.Err)
	}
	if e, ok := errors.AsType[*json.SemanticError](err); ok { // without Err, a value has the wrong type
		return fmt.Errorf("%+.300q: %w", e.JSONPointer, cmp.Or(e.Err, errNotObject))
	}
	return err
}
