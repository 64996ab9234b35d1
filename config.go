package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/redirecturi"
	"authsession/internal/redisurl"

	"github.com/go-jose/go-jose/v4"
)

// config is what the environment says. Every variable is named, defaulted, explained and checked in this file alone.
type config struct {
	addr          string           // listen address
	authURL       string           // consent page, up to and with "sess_id="
	redis         redisurl.Options // how to reach Redis
	replicas      int              // of Redis, that must have a session
	keyPrefix     string           // of every key in Redis
	sessionTTL    time.Duration    // lifetime of a session
	sealRecords   bool             // records are for whoever has the session's secret
	tokens        bearer.Config    // which tokens are good
	certHeader    string           // in which the gateway passes its caller's certificate; "": none
	clients       *clients.File    // which client may do what; nil: every one all
	trusted       []netip.Prefix   // proxies whose X-Forwarded-For is believed
	storeTimeout  time.Duration    // for all Redis work of one request
	maxInFlight   int              // requests in work at once
	drainDelay    time.Duration    // not ready and still serving, after a signal
	shutdownGrace time.Duration    // for requests in flight, after that
	metricsAddr   string           // "": no metrics
	logLevel      slog.Level       // the least that is logged
}

// loadConfig reads the variables through getenv. One that is set but empty counts as not set. The error names every
// wrong variable and its rule, and never a value: some hold passwords.
func loadConfig(getenv func(string) string) (config, error) {
	e := fromEnv{get: getenv}
	c := e.config()
	if e.wrongs != nil {
		return c, errors.New(strings.Join(e.wrongs, "; "))
	}
	return c, nil
}

// printVariables writes every variable with its default and what it is for.
func printVariables(w io.Writer) {
	e := fromEnv{get: func(string) string { return "" }}
	e.config()
	for _, v := range e.known {
		fallback := ""
		if v.fallback != "" {
			fallback = " (default " + v.fallback + ")"
		}
		fmt.Fprintf(w, "  %s%s\n    \t%s\n", v.name, fallback, v.help)
	}
}

// config reads every variable, in the order in which printVariables lists them.
func (e *fromEnv) config() config {
	c := config{
		addr:    e.address("ADDR", ":8080", "listen address"),
		authURL: e.authURL("AUTH_URL", "required: the consent page's URL; https, or http to a loopback host"),
		redis:   e.redis(),
		replicas: e.count("REDIS_WAIT_REPLICAS", "0",
			"replicas that must have a session too, by WAIT, 0 to 100; fewer within STORE_TIMEOUT: 503", 0, 100),
		keyPrefix:  e.text("KEY_PREFIX", "auth_session:", "what every key in Redis begins with"),
		sessionTTL: e.duration("SESSION_TTL", "30m", "lifetime of a session, 1m to 168h", time.Minute, 168*time.Hour),
		sealRecords: e.boolean("SEAL_RECORDS", "false",
			"true or false: seal each record by a key that only its session's sess_id gives"),
		tokens: bearer.Config{
			JWKSURL:  e.jwksURL("JWKS_URL", "required: the key set's URL; https, file, or http to a loopback host"),
			Issuer:   e.text("JWT_ISSUER", "", "what iss must be; any where not set"),
			Audience: e.text("JWT_AUDIENCE", "", "what aud must have; any where not set"),
			Algorithms: e.algorithms("JWT_ALGORITHMS", "RS256,PS256,ES256,EdDSA",
				"comma-separated; RS, PS and ES also with 384 or 512"),
			ClientClaims: e.list("JWT_CLIENT_CLAIM", "client_id,azp,sub", "claims; the first that is there names the client"),
			MaxLifetime: e.duration("JWT_MAX_LIFETIME", "24h", "a token with more left is refused, 1s to 87600h",
				time.Second, 10*365*24*time.Hour),
			RequireATJWT: e.typ("JWT_TYP", "at+jwt demands that type (RFC 9068); an access token's or JWT where not set"),
		},
		certHeader: e.header("CLIENT_CERT_HEADER",
			"header in which the gateway passes its caller's certificate; bound tokens are refused where not set"),
		trusted: e.prefixes("TRUSTED_PROXIES", "comma-separated CIDRs of proxies whose X-Forwarded-For the log believes"),
		storeTimeout: e.duration("STORE_TIMEOUT", "1s",
			"for all Redis work of a request, 1ms to 1m, at most half of SESSION_TTL", time.Millisecond, time.Minute),
		maxInFlight: e.count("MAX_IN_FLIGHT", "2048", "requests in work at once, 1 to 1000000; above it 503 at once",
			1, 1_000_000),
		drainDelay:    e.duration("DRAIN_DELAY", "0s", "after SIGTERM, not ready and still serving, 0s to 1h", 0, time.Hour),
		shutdownGrace: e.duration("SHUTDOWN_GRACE", "10s", "then, for requests in flight, 0s to 1h", 0, time.Hour),
		metricsAddr:   e.address("METRICS_ADDR", "", "a second listener, with /metrics; none where not set"),
		logLevel:      e.level("LOG_LEVEL", "info", "debug, info, warn or error"),
	}
	if c.storeTimeout <= time.Minute && c.sessionTTL >= time.Minute && c.storeTimeout > c.sessionTTL/2 {
		e.wrong("STORE_TIMEOUT", "must be at most half of SESSION_TTL")
	}
	c.clients = e.clients("CLIENTS_FILE", "JSON file that says which client may do what; every one all where not set",
		max(time.Minute, 2*c.storeTimeout), 168*time.Hour)
	if _, port, _ := net.SplitHostPort(c.addr); c.metricsAddr == c.addr && port != "0" {
		e.wrong("METRICS_ADDR", "must not be ADDR")
	}
	return c
}

// fromEnv reads variables, and collects what they are and what is wrong with them.
type fromEnv struct {
	get    func(string) string
	known  []variable
	wrongs []string
}

type variable struct{ name, fallback, help string }

func (e *fromEnv) wrong(name, rule string) {
	e.wrongs = append(e.wrongs, name+" "+rule)
}

// text is the variable's value. All others read it by text.
func (e *fromEnv) text(name, fallback, help string) string {
	e.known = append(e.known, variable{name, fallback, help})
	return cmp.Or(e.get(name), fallback)
}

// list is the comma-separated members, without white space around them.
func (e *fromEnv) list(name, fallback, help string) []string {
	text := e.text(name, fallback, help)
	if text == "" {
		return nil
	}
	var members []string
	for member := range strings.SplitSeq(text, ",") {
		member = strings.TrimSpace(member)
		if member == "" {
			e.wrong(name, "must be a comma-separated list without empty members")
			return nil
		}
		members = append(members, member)
	}
	return members
}

func (e *fromEnv) algorithms(name, fallback, help string) (algorithms []jose.SignatureAlgorithm) {
	for _, member := range e.list(name, fallback, help) {
		alg := jose.SignatureAlgorithm(member)
		if !slices.Contains(bearer.Algorithms, alg) {
			e.wrong(name, "must list only RS, PS or ES with 256, 384 or 512, or EdDSA")
			return nil
		}
		algorithms = append(algorithms, alg)
	}
	return algorithms
}

func (e *fromEnv) prefixes(name, help string) (prefixes []netip.Prefix) {
	for _, member := range e.list(name, "", help) {
		prefix, err := netip.ParsePrefix(member)
		if err != nil || prefix.Addr().Is4In6() {
			e.wrong(name, "must list CIDRs like 10.0.0.0/8 or fd00::/8")
			return nil
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes
}

// typ tells whether a token must be of the type at+jwt.
func (e *fromEnv) typ(name, help string) bool {
	typ := e.text(name, "", help)
	if typ != "" && typ != "at+jwt" {
		e.wrong(name, "must be at+jwt, or not set")
	}
	return typ != ""
}

// header is the canonical form of a header's name; "" is one not set.
func (e *fromEnv) header(name, help string) string {
	header := e.text(name, "", help)
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
	if strings.Trim(header, allowed) != "" {
		e.wrong(name, "must be the name of a header: letters, digits and hyphens")
	}
	return textproto.CanonicalMIMEHeaderKey(header)
}

func (e *fromEnv) clients(name, help string, leastTTL, mostTTL time.Duration) *clients.File {
	path := e.text(name, "", help)
	if path == "" {
		return nil
	}
	file, err := clients.Open(path, leastTTL, mostTTL)
	if err != nil {
		e.wrong(name, "must name a good clients file: "+err.Error())
	}
	return file
}

func (e *fromEnv) duration(name, fallback, help string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(e.text(name, fallback, help))
	if err != nil || d < least || d > most {
		e.wrong(name, fmt.Sprintf("must be a duration like %s, from %s to %s", fallback, least, most))
	}
	return d
}

func (e *fromEnv) count(name, fallback, help string, least, most int) int {
	n, err := strconv.Atoi(e.text(name, fallback, help))
	if err != nil || n < least || n > most {
		e.wrong(name, fmt.Sprintf("must be a number from %d to %d", least, most))
	}
	return n
}

func (e *fromEnv) boolean(name, fallback, help string) bool {
	text := e.text(name, fallback, help)
	if text != "true" && text != "false" {
		e.wrong(name, "must be true or false")
	}
	return text == "true"
}

func (e *fromEnv) level(name, fallback, help string) slog.Level {
	var level slog.Level
	text := e.text(name, fallback, help)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, text) || level.UnmarshalText([]byte(text)) != nil {
		e.wrong(name, "must be debug, info, warn or error")
	}
	return level
}

// address is "" where it is not set and has no default.
func (e *fromEnv) address(name, fallback, help string) string {
	addr := e.text(name, fallback, help)
	if addr == "" {
		return ""
	}
	_, port, err := net.SplitHostPort(addr)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		e.wrong(name, "must be host:port or :port")
	}
	return addr
}

// authURL is the URL with the name of the session's parameter added to its query, so that a session's URL is one
// concatenation.
func (e *fromEnv) authURL(name, help string) string {
	text := e.text(name, "", help)
	u, err := url.Parse(text)
	switch {
	case text == "":
		e.wrong(name, "is required: the absolute URL of the consent page")
	case err == nil && (u.User != nil || strings.Contains(text, "#")):
		e.wrong(name, "must have neither userinfo nor a fragment")
	case err != nil || !webScheme(u) || redirecturi.CheckCharacters(text) != nil ||
		u.Port() != "" && !redirecturi.ValidPort(u.Port()):
		e.wrong(name, "must be an absolute https URL (http only for a loopback host)")
	case u.Query().Has("sess_id"):
		e.wrong(name, "must not have sess_id in its query: it is added to each session's URL")
	case u.RawQuery != "":
		return text + "&sess_id="
	case u.ForceQuery:
		return text + "sess_id="
	}
	return text + "?sess_id="
}

func (e *fromEnv) jwksURL(name, help string) *url.URL {
	text := e.text(name, "", help)
	u, err := url.Parse(text)
	switch {
	case text == "":
		e.wrong(name, "is required: the URL of the authorization server's key set")
	case err == nil && u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/") &&
		!strings.ContainsAny(text, "?#"):
	case err != nil || u.Host == "" || !webScheme(u):
		e.wrong(name, "must be an https URL, file:///path, or http with a loopback host")
	}
	return u
}

// webScheme tells whether u is https, or http to this very machine.
func webScheme(u *url.URL) bool {
	ip, _ := netip.ParseAddr(u.Hostname())
	loopback := strings.EqualFold(u.Hostname(), "localhost") || ip.IsLoopback()
	return u.Hostname() != "" && (u.Scheme == "https" || u.Scheme == "http" && loopback)
}

func (e *fromEnv) redis() redisurl.Options {
	text := e.text("REDIS_URL", "", "required: redis://, rediss:// or unix://, in go-redis's format for the mode")
	mode := e.text("REDIS_MODE", redisurl.Standalone, "standalone, sentinel or cluster")
	access := redisurl.Access{
		PasswordFile: e.text("REDIS_PASSWORD_FILE", "",
			"file with the password, instead of the URL's; read again for each new connection"),
	}
	if access.PasswordFile != "" {
		if _, err := redisurl.ReadPassword(access.PasswordFile); err != nil {
			e.wrong("REDIS_PASSWORD_FILE", "must name a readable file that holds a password")
		}
	}
	if file := e.text("REDIS_CA_FILE", "", "file with the PEM roots for rediss://, instead of the system's"); file != "" {
		data, err := os.ReadFile(file)
		access.Roots = x509.NewCertPool()
		if !access.Roots.AppendCertsFromPEM(data) || err != nil {
			e.wrong("REDIS_CA_FILE", "must name a readable file of PEM certificates")
		}
	}
	access.CertFile = e.text("REDIS_CERT_FILE", "", "file with the PEM client certificate for rediss://")
	access.KeyFile = e.text("REDIS_KEY_FILE", "", "file with its key; both are read again for each new connection")
	if access.CertFile != "" || access.KeyFile != "" {
		if _, err := tls.LoadX509KeyPair(access.CertFile, access.KeyFile); err != nil {
			e.wrong("REDIS_CERT_FILE", "and REDIS_KEY_FILE must name readable PEM files: a certificate and its key")
		}
	}
	access.ServerName = e.text("REDIS_TLS_SERVER_NAME", "",
		"the name in the certificates of Redis, where nodes are announced by address")
	switch {
	case !slices.Contains([]string{redisurl.Standalone, redisurl.Sentinel, redisurl.Cluster}, mode):
		e.wrong("REDIS_MODE", "must be standalone, sentinel or cluster")
		return redisurl.Options{}
	case text == "":
		e.wrong("REDIS_URL", "is required: redis://, rediss:// or unix://")
		return redisurl.Options{}
	}
	options, err := redisurl.Parse(mode, text, access)
	if err != nil {
		e.wrong("REDIS_URL",
			fmt.Sprintf("must be redis://, rediss:// or unix:// in go-redis's format for %s mode: %v", mode, err))
	}
	return options
}
