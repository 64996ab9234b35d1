package clients

import (
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

var errUnknown = errors.New("unknown object member name")

// faults is what is wrong with a file.
type faults []error

// add adds a fault, unless err is nil. place is a JSON pointer, such as "/clients/acme/session_ttl".
func (f *faults) add(place jsontext.Pointer, err error) {
	if err != nil {
		*f = append(*f, fmt.Errorf("%+.300q: %w", place, err))
	}
}

// parse returns the clients of a file. If data is valid JSON, the error has every fault, otherwise the first syntax
// error. A client whose rate has not changed keeps its current quota.
func (f *File) parse(data []byte) (map[string]*Client, error) {
	err := json.Unmarshal(data, new(jsontext.Value))
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok { // its own message may quote the file at length
		return nil, fmt.Errorf("%+.300q, byte %d: must be valid JSON: %w", e.JSONPointer, e.ByteOffset, e.Err)
	}
	document, err := object(data)
	if err != nil {
		return nil, err
	}
	var found faults
	for _, name := range slices.Sorted(maps.Keys(document)) { // sorted, so that the same file has the same error
		if name != "clients" {
			found.add(jsontext.Pointer("").AppendToken(name), errUnknown)
		}
	}
	members, err := object(document["clients"])
	found.add("/clients", err)
	current, clients := *f.clients.Load(), map[string]*Client{}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		clients[name] = f.client(name, members[name], current[name], &found)
	}
	return clients, errors.Join(found...)
}

// client returns the client with this name in the file. current is its present version, or nil.
func (f *File) client(name string, value []byte, current *Client, found *faults) *Client {
	place := jsontext.Pointer("/clients").AppendToken(name)
	if len(name) < 1 || len(name) > maxName {
		found.add(place, fmt.Errorf("must have a name of 1 to %d bytes", maxName))
	}
	rules, err := object(value)
	found.add(place, err)
	c := &Client{Name: name}
	for _, member := range slices.Sorted(maps.Keys(rules)) {
		value, place := rules[member], place.AppendToken(member)
		texts := func(check func(string) error) []string { return parseTexts(value, check, place, found) }
		switch member {
		case "redirect_uris":
			c.redirectURIs = texts(checkURI)
		case "institution_ids":
			c.institutionIDs = texts(checkID)
		case "permissions":
			c.Permissions = texts(checkID)
			distinct := slices.Compact(slices.Sorted(slices.Values(c.Permissions)))
			if len(c.Permissions) > maxPermissions || len(c.Permissions) > len(distinct) {
				found.add(place, fmt.Errorf("must be at most %d names, none twice", maxPermissions))
			}
		case "session_ttl":
			text, _ := strictjson.Text(value)
			if c.SessionTTL, err = time.ParseDuration(text); err != nil || c.SessionTTL < f.minTTL || c.SessionTTL > f.maxTTL {
				found.add(place, fmt.Errorf("must be a duration from %s to %s", f.minTTL, f.maxTTL))
			}
		case "sessions_per_minute":
			n, err := strconv.Atoi(string(value))
			if err != nil || n < 1 || n > maxPerMinute {
				found.add(place, fmt.Errorf("must be a number from 1 to %d", maxPerMinute))
			}
			c.quota = &quota{perMinute: n, limiters: map[string]*rate.Limiter{}}
			if current != nil && current.quota != nil && current.quota.perMinute == n {
				c.quota = current.quota
			}
		default:
			found.add(place, errUnknown)
		}
	}
	return c
}

// object returns the members of a JSON object, and an error for anything else, null and nothing included.
func object(value []byte) (members map[string]jsontext.Value, err error) {
	if json.Unmarshal(value, &members) != nil || members == nil {
		return nil, errors.New("must be a JSON object")
	}
	return members, nil
}

// parseTexts returns an array of strings that all pass check. It rejects null.
func parseTexts(value []byte, check func(string) error, place jsontext.Pointer, found *faults) []string {
	texts, err := strictjson.Texts(value)
	if err != nil || texts == nil {
		found.add(place, errors.New("must be an array of strings"))
	}
	for i, text := range texts {
		if err := check(text); err != nil {
			found.add(place, fmt.Errorf("entry %d %w", i+1, err))
		}
	}
	return texts
}

func checkURI(uri string) error {
	if uri == "" || strings.Contains(uri, "*") {
		return errors.New("must be a URI without *")
	}
	return redirecturi.Check(uri)
}

func checkID(id string) error {
	unprintable := func(c rune) bool { return c < '!' || c > '~' }
	if len(id) < 1 || len(id) > 64 || strings.ContainsFunc(id, unprintable) {
		return errors.New("must be 1 to 64 bytes of printable ASCII without space")
	}
	return nil
}
