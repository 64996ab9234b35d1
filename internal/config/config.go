// Package config reads the service's configuration from environment variables.
//
// Each variable's name, default, range and help stand here and nowhere else.
package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/redisconn"
)

// Config is the service's configuration.
type Config struct {
	Addr             string            // listen address
	AuthURL          string            // consent page, up to and including "sess_id="
	Redis            redisconn.Options // where Redis is and how to connect
	WaitReplicas     int               // replicas that must confirm each session
	KeyPrefix        string            // of every key in Redis
	SessionTTL       time.Duration     // lifetime of a session
	SealRecords      bool              // encrypt each record by a key that only its session's sess_id gives
	Tokens           bearer.Config     // which access tokens are valid
	ClientCertHeader string            // header with the caller's certificate, canonical; "" if there is none
	Clients          *clients.File     // what each client may do; nil if every client may do everything
	TrustedProxies   []netip.Prefix    // proxies whose X-Forwarded-For is believed
	StoreTimeout     time.Duration     // limit for all Redis work of one request
	MaxInFlight      int               // requests in flight at once
	DrainDelay       time.Duration     // between the shutdown signal and the end of serving
	ShutdownGrace    time.Duration     // for requests in flight, after DrainDelay
	MetricsAddr      string            // listen address for metrics; "" if there is none
	LogLevel         slog.Level        // lowest level that is logged
	Settings         []slog.Attr       // every variable with its value or default, as text without secrets
}

// Load reads the variables through getenv; an empty value counts as not set. The error has a line for each invalid
// variable, and for each fault of the clients file: the variable's name, its value unless that may be a secret, and the
// broken rule. The fields of valid variables are set in any case.
func Load(getenv func(string) string) (Config, error) {
	r := reader{getenv: getenv}
	c := r.config()
	c.Settings = r.settings
	return c, errors.Join(r.problems...)
}

// PrintVariables writes each variable with its default and help.
func PrintVariables(w io.Writer) {
	r := reader{getenv: func(string) string { return "" }}
	r.config()
	for _, v := range r.variables {
		fmt.Fprintf(w, "  %s%s\n    \t%s\n", v.name, v.note, v.help)
	}
}

// reader collects the variables that it reads, and what is wrong with their values.
type reader struct {
	getenv    func(string) string
	variables []variable
	settings  []slog.Attr
	problems  []error // each begins with a variable's name
}

type variable struct{ name, note, help string }

// read reads a variable. An invalid value gives T's zero value and the message that the variable must be what its help
// says. A variable is required if parse rejects "". No value may have control or format characters (Unicode's classes
// Cc and Cf, which include the byte order mark), or white space around it.
func read[T any](r *reader, name, fallback, help string, parse func(string) (T, bool)) (value T) {
	v := variable{name: name, help: help}
	if fallback != "" {
		v.note = " (default " + fallback + ")"
	}
	text := cmp.Or(r.getenv(name), fallback)
	r.settings = append(r.settings, slog.String(name, withoutSecrets(name, text)))
	parsed, ok := parse(text)
	isControl := func(c rune) bool { return unicode.In(c, unicode.Cc, unicode.Cf) }
	switch {
	case strings.TrimSpace(text) != text || strings.ContainsFunc(text, isControl):
		r.reject(name, "must not have white space around it, or control characters (a Secret often ends in a newline)")
	case ok:
		value = parsed
	case text == "":
		v.note = " (required)"
		r.reject(name, "is required: "+help)
	default:
		r.reject(name, "must be "+help)
	}
	r.variables = append(r.variables, v)
	return value
}

// reject adds a problem. It quotes the value unless that is a secret, or may be one by mistake.
func (r *reader) reject(name, rule string) {
	value := r.getenv(name)
	secrets := []string{"REDIS_URL", "REDIS_PASSWORD_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"}
	hasSecret := slices.Contains(secrets, name) || strings.ContainsAny(value, "@?") // a URL's userinfo or query
	if value != "" && !hasSecret {
		name += fmt.Sprintf("=%+.64q", value)
	}
	r.problems = append(r.problems, errors.New(name+" "+rule))
}

// config reads every variable, in the order in which PrintVariables lists them.
func (r *reader) config() Config {
	const maxTTL = 168 * time.Hour
	c := Config{
		Addr: read(r, "ADDR", ":8080", "host:port or :port", parseAddress),
		AuthURL: read(r, "AUTH_URL", "",
			"the consent page's URL: https (or http to a loopback host) without userinfo, fragment and sess_id",
			parseAuthURL),
		Redis: r.redis(),
		WaitReplicas: read(r, "REDIS_WAIT_REPLICAS", "0",
			"0 to 100, the number of replicas that must confirm each session within STORE_TIMEOUT (else 503)",
			within(0, 100, strconv.Atoi)),
		KeyPrefix: read(r, "KEY_PREFIX", "auth_session:", "the prefix of every key in Redis", anyText),
		SessionTTL: read(r, "SESSION_TTL", "30m", "a duration from 1m to 168h, such as 30m: the lifetime of a session",
			within(time.Minute, maxTTL, time.ParseDuration)),
		SealRecords: read(r, "SEAL_RECORDS", "false",
			"true or false: encrypt each record by a key that only its session's sess_id gives",
			oneOf("true", "false")) == "true",
		Tokens: bearer.Config{
			JWKSURL: read(r, "JWKS_URL", "", "the key set's URL: https, file:///path, or http to a loopback host",
				parseJWKSURL),
			Issuer:   read(r, "JWT_ISSUER", "", "the iss that a token must have (if not set, any)", anyText),
			Audience: read(r, "JWT_AUDIENCE", "", "a member that a token's aud must have (if not set, any)", anyText),
			Algorithms: read(r, "JWT_ALGORITHMS", "RS256,PS256,ES256,EdDSA",
				"a comma-separated list of EdDSA (or Ed25519) and RS, PS or ES with 256, 384 or 512",
				listOf(bearer.ParseAlgorithm)),
			ClientClaims: read(r, "JWT_CLIENT_CLAIM", "client_id,azp,sub",
				"comma-separated claims, of which the first that a token has names the client", listOf(nonEmpty)),
			ScopeClaims: read(r, "JWT_SCOPE_CLAIM", "scope,scp",
				"comma-separated claims that may hold the scope, such as roles", listOf(nonEmpty)),
			MaxLifetime: read(r, "JWT_MAX_LIFETIME", "24h",
				"a duration from 1s to 87600h: the maximum time left until a token's exp",
				within(time.Second, 10*365*24*time.Hour, time.ParseDuration)),
			RequireATJWT: read(r, "JWT_TYP", "",
				"at+jwt, to accept only tokens of that type, RFC 9068 (if not set, also JWT and no type)",
				oneOf("", "at+jwt")) != "",
		},
		ClientCertHeader: read(r, "CLIENT_CERT_HEADER", "",
			"a header's name, of letters, digits and hyphens: the gateway passes its caller's certificate in it "+
				"(if not set, bound tokens are refused)", parseHeader),
		TrustedProxies: read(r, "TRUSTED_PROXIES", "",
			"comma-separated CIDRs, like 10.0.0.0/8 or fd00::/8, of proxies whose X-Forwarded-For the log believes",
			listOf(parsePrefix)),
		StoreTimeout: read(r, "STORE_TIMEOUT", "1s",
			"a duration from 1ms to 1m, at most half of SESSION_TTL: the limit for all Redis work of a request",
			within(time.Millisecond, time.Minute, time.ParseDuration)),
		MaxInFlight: read(r, "MAX_IN_FLIGHT", "2048", "1 to 1000000, the limit of requests in flight (above it 503)",
			within(1, 1_000_000, strconv.Atoi)),
		DrainDelay: read(r, "DRAIN_DELAY", "0s", "a duration from 0s to 1h: how long to serve while not ready, after SIGTERM",
			within(0, time.Hour, time.ParseDuration)),
		ShutdownGrace: read(r, "SHUTDOWN_GRACE", "10s",
			"a duration from 0s to 1h: the time for requests in flight, after DRAIN_DELAY",
			within(0, time.Hour, time.ParseDuration)),
		MetricsAddr: read(r, "METRICS_ADDR", "", "host:port or :port for /metrics (if not set, none)", parseAddress),
		LogLevel:    read(r, "LOG_LEVEL", "info", "debug, info, warn or error", parseLevel),
	}
	if c.SessionTTL > 0 && c.StoreTimeout > c.SessionTTL/2 {
		r.reject("STORE_TIMEOUT", "must be at most half of SESSION_TTL")
	}
	if _, port, _ := net.SplitHostPort(c.Addr); c.MetricsAddr != "" && c.MetricsAddr == c.Addr && port != "0" {
		r.reject("METRICS_ADDR", "must not be ADDR")
	}
	const help = "a JSON file that says what each client may do (if not set, every client may do everything)"
	if path := read(r, "CLIENTS_FILE", "", help, anyText); path != "" {
		file, err := clients.Open(path, max(time.Minute, 2*c.StoreTimeout), maxTTL)
		if err != nil {
			for fault := range strings.SplitSeq(err.Error(), "\n") {
				r.reject("CLIENTS_FILE", "must name a valid clients file: "+fault)
			}
		}
		c.Clients = file
	}
	return c
}

// redis reads the variables of the connection to Redis.
func (r *reader) redis() redisconn.Options {
	rawURL := read(r, "REDIS_URL", "", "redis://, rediss:// or unix://, in go-redis's format for the mode", nonEmpty)
	modes := []string{redisconn.Standalone, redisconn.Sentinel, redisconn.Cluster}
	mode := read(r, "REDIS_MODE", redisconn.Standalone, "standalone, sentinel or cluster", oneOf(modes...))
	access := redisconn.Access{
		PasswordFile: read(r, "REDIS_PASSWORD_FILE", "",
			"a file with the password, read again for each new connection (if not set, the URL's)", anyText),
		Roots: read(r, "REDIS_CA_FILE", "", "a file with PEM roots for rediss:// (if not set, the system's)", parseRoots),
		CertFile: read(r, "REDIS_CERT_FILE", "",
			"a file with the PEM client certificate for rediss://, read again for each new connection", anyText),
		KeyFile: read(r, "REDIS_KEY_FILE", "", "the file with the key of REDIS_CERT_FILE", anyText),
		ServerName: read(r, "REDIS_TLS_SERVER_NAME", "",
			"the name in the certificates of Redis, if nodes are announced by address", anyText),
	}
	if access.PasswordFile != "" {
		if _, err := redisconn.ReadPassword(access.PasswordFile); err != nil {
			r.reject("REDIS_PASSWORD_FILE", "must name a valid password file: "+err.Error())
		}
	}
	if access.CertFile != "" || access.KeyFile != "" {
		if _, err := tls.LoadX509KeyPair(access.CertFile, access.KeyFile); err != nil {
			r.reject("REDIS_CERT_FILE", "and REDIS_KEY_FILE must name readable PEM files: a certificate and its key")
		}
	}
	if rawURL == "" {
		return redisconn.Options{}
	}
	if mode != "" { // else the URL must fit one of the modes
		modes = []string{mode}
	}
	var options redisconn.Options
	var err error
	for _, mode := range modes {
		if options, err = redisconn.Parse(mode, rawURL, access); err == nil {
			return options
		}
	}
	r.reject("REDIS_URL", fmt.Sprintf("must be in go-redis's format for %s mode: %v", strings.Join(modes, " or "), err))
	return options
}
