package clients

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"authsession/internal/redirecturi"
	"authsession/internal/strictjson"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/time/rate"
)

const (
	maxName        = 128 // bytes of a client's name, as in a token
	maxPermissions = 64  // of a session
	maxID          = 64  // bytes of an institution's or a permission's name
	maxPerMinute   = 1_000_000
	maxLimiters    = 10_000
)

// Client is what a client may do. Its methods may be called at the same time.
type Client struct {
	Name        string        // in the file; "*" for all that are not listed
	Permissions []string      // all that it may ask for; nil: any
	SessionTTL  time.Duration // lifetime of its sessions; 0: the service's

	uris         map[string]bool   // nil: any
	anyPort      map[portless]bool // those of uris that are loopback http without a port
	institutions map[string]bool   // nil: any
	limits       *limits           // nil: none
}

// AllowsURI tells whether the browser may be sent to uri, which has passed redirecturi.Check, or is "", not given. An
// entry of redirect_uris allows what equals it byte for byte. One without a query also allows itself with any query,
// and one of loopback http without a port allows any port (RFC 8252, section 7.3).
func (c *Client) AllowsURI(uri string) bool {
	bare, _, _ := strings.Cut(uri, "?")
	if uri == "" || c.uris == nil || c.uris[uri] || c.uris[bare] { // an entry that equals bare has no query
		return true
	}
	around, isHTTP := cutPort(uri)
	if !isHTTP || c.anyPort[around] {
		return isHTTP
	}
	around.after, _, _ = strings.Cut(around.after, "?")
	return c.anyPort[around]
}

// portless is what stands before and after the port of an http URI.
type portless struct{ before, after string }

// cutPort takes the port, if there is one, out of an http URI.
func cutPort(uri string) (around portless, isHTTP bool) {
	const scheme = "http://"
	if len(uri) < len(scheme) || !strings.EqualFold(uri[:len(scheme)], scheme) {
		return portless{}, false
	}
	end := len(uri)
	if i := strings.IndexAny(uri[len(scheme):], "/?"); i >= 0 {
		end = len(scheme) + i
	}
	host := uri[:end]
	if colon := strings.LastIndexByte(host, ':'); redirecturi.ValidPort(host[colon+1:]) {
		host = host[:colon]
	}
	return portless{host, uri[end:]}, true
}

// AllowsInstitution tells whether a session may be for an institution; "" is one not given.
func (c *Client) AllowsInstitution(id string) bool {
	return id == "" || c.institutions == nil || c.institutions[id]
}

// AllowsPermissions tells whether all of these may be asked for.
func (c *Client) AllowsPermissions(permissions []string) bool {
	foreign := func(p string) bool { return !slices.Contains(c.Permissions, p) }
	return c.Permissions == nil || !slices.ContainsFunc(permissions, foreign)
}

// limits is what may still be created under a name of the file: by one client, or by each one that is not listed.
type limits struct {
	perMinute int
	mu        sync.Mutex
	limiters  map[string]*rate.Limiter // by client
}

// Take takes a session from those that the client of this name may create now: sessions_per_minute, evenly, of which a
// sixth may be saved up. With none left it takes nothing, and returns how long it is until there is one.
func (c *Client) Take(name string, now time.Time) (wait time.Duration) {
	l := c.limits
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.limiters[name]
	if limiter == nil {
		for other := range l.limiters {
			if len(l.limiters) < maxLimiters {
				break
			}
			delete(l.limiters, other) // any one makes room
		}
		limiter = rate.NewLimiter(rate.Limit(l.perMinute)/60, max(1, l.perMinute/6))
		l.limiters[name] = limiter
	}
	if limiter.AllowN(now, 1) {
		return 0
	}
	missing := 1 - limiter.TokensAt(now)
	return time.Duration(math.Ceil(missing / float64(limiter.Limit()) * float64(time.Second)))
}

// parse reads a document. A client whose rate has not changed keeps what it has used up of it.
func (f *File) parse(document []byte) (map[string]*Client, error) {
	var found, before map[string]*Client
	if last := f.clients.Load(); last != nil {
		before = *last
	}
	err := object(document, func(name string, value []byte) error {
		if name != "clients" {
			return errUnknown
		}
		found = map[string]*Client{}
		return object(value, func(name string, value []byte) error {
			if len(name) < 1 || len(name) > maxName {
				return fmt.Errorf("must have a name of 1 to %d bytes, as clients of tokens have", maxName)
			}
			c := &Client{Name: name}
			found[name] = c
			err := object(value, func(name string, value []byte) error { return f.set(c, name, value) })
			if old := before[name]; old != nil && old.limits != nil && c.limits != nil &&
				old.limits.perMinute == c.limits.perMinute {
				c.limits = old.limits
			}
			return err
		})
	})
	if err == nil && found == nil {
		err = errors.New(`must have the member "clients"`)
	}
	if err != nil { // strictjson does not tell where the syntax is wrong
		_, syntax := jsontext.AppendFormat(nil, document)
		if at, ok := errors.AsType[*jsontext.SyntacticError](syntax); ok {
			err = fmt.Errorf("%w, at %+.300q, byte %d", err, at.JSONPointer, at.ByteOffset)
		}
	}
	return found, err
}

var errUnknown = errors.New("is no member that this file can have")

// object calls member for each member of an object until one fails, and puts the member's name before its error.
func object(data []byte, member func(name string, value []byte) error) (failed error) {
	malformed := strictjson.Object(data, func(name, value []byte) {
		if failed == nil {
			if err := member(string(name), value); err != nil {
				failed = fmt.Errorf("%+.128q: %w", name, err)
			}
		}
	})
	return cmp.Or(malformed, failed)
}

// set reads one member of a client.
func (f *File) set(c *Client, name string, value []byte) (err error) {
	switch name {
	case "redirect_uris":
		var uris []string
		uris, err = texts(value, checkURI)
		c.uris, c.anyPort = setOf(uris), map[portless]bool{}
		for _, uri := range uris {
			if around, isHTTP := cutPort(uri); isHTTP && around.before+around.after == uri {
				c.anyPort[around] = true
			}
		}
	case "institution_ids":
		var ids []string
		ids, err = texts(value, checkID)
		c.institutions = setOf(ids)
	case "permissions":
		c.Permissions, err = texts(value, checkID)
		if n := len(c.Permissions); n > maxPermissions || n != len(setOf(c.Permissions)) {
			err = fmt.Errorf("must be at most %d names, none twice", maxPermissions)
		}
	case "session_ttl":
		text, _ := strictjson.Text(value)
		c.SessionTTL, err = time.ParseDuration(text)
		if err != nil || c.SessionTTL < f.leastTTL || c.SessionTTL > f.mostTTL {
			err = fmt.Errorf("must be a duration from %s to %s", f.leastTTL, f.mostTTL)
		}
	case "sessions_per_minute":
		n, err := strconv.Atoi(string(value))
		if err != nil || n < 1 || n > maxPerMinute {
			return fmt.Errorf("must be a number from 1 to %d", maxPerMinute)
		}
		c.limits = &limits{perMinute: n, limiters: map[string]*rate.Limiter{}}
	default:
		err = errUnknown
	}
	return err
}

// texts returns an array of strings that all pass check.
func texts(value []byte, check func(string) error) ([]string, error) {
	all, err := strictjson.Texts(value)
	if err != nil || all == nil {
		return nil, errors.New("must be an array of strings")
	}
	for i, text := range all {
		if err := check(text); err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
	}
	return all, nil
}

func setOf(texts []string) map[string]bool {
	set := make(map[string]bool, len(texts))
	for _, text := range texts {
		set[text] = true
	}
	return set
}

func checkURI(uri string) error {
	if uri == "" || strings.Contains(uri, "*") {
		return errors.New("must be a URI without *")
	}
	return redirecturi.Check(uri)
}

// checkID takes the names that requests may have.
func checkID(id string) error {
	if len(id) < 1 || len(id) > maxID || strings.ContainsFunc(id, func(c rune) bool { return c < '!' || c > '~' }) {
		return fmt.Errorf("must be 1 to %d bytes of printable ASCII without space", maxID)
	}
	return nil
}
