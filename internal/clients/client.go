package clients

import (
	"slices"
	"strings"
	"sync"
	"time"

	"authsession/internal/redirecturi"

	"golang.org/x/time/rate"
)

const maxLimiters = 10_000 // for each name of the file

// Client is the rules of a client. It is safe for concurrent use.
type Client struct {
	Name        string        // in the file; "*" stands for all clients that are not listed
	Permissions []string      // nil: no limit
	SessionTTL  time.Duration // 0: the service's

	redirectURIs   []string // nil: no limit
	institutionIDs []string // nil: no limit
	quota          *quota   // nil: no limit
}

// AllowsURI reports whether a session may send the browser to uri, which has passed redirecturi.Check or is "".
//
// An entry of redirect_uris matches byte for byte. An entry without a query also matches with any query. A loopback
// http entry without a port also matches with any port (RFC 8252, section 7.3).
func (c *Client) AllowsURI(uri string) bool {
	if uri == "" || c.redirectURIs == nil {
		return true
	}
	bare, _, _ := strings.Cut(uri, "?")
	forms := []string{uri, bare, withoutPort(uri), withoutPort(bare)} // an entry may equal any of these
	return slices.ContainsFunc(c.redirectURIs, func(entry string) bool { return slices.Contains(forms, entry) })
}

// withoutPort returns an http URI without its port, and a URI of another scheme unchanged.
func withoutPort(uri string) string {
	scheme, rest, _ := strings.Cut(uri, "://")
	if !strings.EqualFold(scheme, "http") {
		return uri
	}
	end := strings.IndexAny(rest+"/", "/?")
	host := rest[:end]
	if colon := strings.LastIndexByte(host, ':'); colon > 0 && redirecturi.ValidPort(host[colon+1:]) {
		host = host[:colon]
	}
	return scheme + "://" + host + rest[end:]
}

// AllowsInstitution reports whether a session may name the institution. It may always name none ("").
func (c *Client) AllowsInstitution(id string) bool {
	return id == "" || c.institutionIDs == nil || slices.Contains(c.institutionIDs, id)
}

// AllowsPermissions reports whether a session may name all of these permissions.
func (c *Client) AllowsPermissions(permissions []string) bool {
	isForeign := func(p string) bool { return !slices.Contains(c.Permissions, p) }
	return c.Permissions == nil || !slices.ContainsFunc(permissions, isForeign)
}

// quota is the sessions per minute of one name in the file. Each client has the whole rate, also each of "*".
type quota struct {
	perMinute int
	mu        sync.Mutex
	limiters  map[string]*rate.Limiter // by client ID
}

// Allow counts a session of the client now and returns 0. If the client has used up its sessions_per_minute, Allow
// counts nothing and returns the time until the next session, more than 0. The rate is spread evenly over the minute,
// and a client may save up a sixth of it.
func (c *Client) Allow(clientID string, now time.Time) (wait time.Duration) {
	q := c.quota
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	limiter := q.limiters[clientID]
	if limiter == nil {
		for other := range q.limiters {
			if len(q.limiters) < maxLimiters {
				break
			}
			delete(q.limiters, other) // an arbitrary one, because any one makes room
		}
		limiter = rate.NewLimiter(rate.Limit(q.perMinute)/60, max(1, q.perMinute/6))
		q.limiters[clientID] = limiter
	}
	session := limiter.ReserveN(now, 1)
	if wait = session.DelayFrom(now); wait > 0 {
		session.CancelAt(now)
	}
	return wait
}
