package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/embedredis"
	"authsession/internal/keytool"
	"authsession/internal/sandbox"
)

// dev is what -dev adds to a service: all that the environment does not say. That is an embedded Redis, the key set of
// a key made for this run, in a file like any other, a consent page, and the platform's paths of platform.go.
type dev struct {
	config config
	key    keytool.Key

	stdout, stderr io.Writer
	redis          string       // where it is, for the printed text
	page           net.Listener // of the sandbox; nil: none
	stops          []func()     // undo what was started
}

// stop undoes what startDev did, also where that failed.
func (d *dev) stop() {
	for _, stop := range slices.Backward(d.stops) {
		stop()
	}
}

func startDev(getenv func(string) string, stdout, stderr io.Writer) (*dev, error) {
	fmt.Fprintln(stdout, "authsession -dev starts the service with all it needs, for development only.")
	d := &dev{stdout: stdout, stderr: stderr, redis: "as REDIS_URL says"}
	if getenv("JWKS_URL") != "" {
		return d, errors.New("-dev makes its own key and does not run with JWKS_URL set")
	}
	dir, err := os.MkdirTemp("", "authsession-dev")
	if err != nil {
		return d, err
	}
	d.stops = append(d.stops, func() { _ = os.RemoveAll(dir) })
	keySetFile := filepath.Join(dir, "jwks.json")
	const name = "authsession-dev" // an issuer and audience, so that the service has nothing to warn of
	defaults := map[string]string{"ADDR": "127.0.0.1:8080", "JWKS_URL": "file://" + keySetFile,
		"JWT_ISSUER": name, "JWT_AUDIENCE": name}
	if getenv("REDIS_URL") == "" {
		embedded, err := embedredis.Start()
		if err != nil {
			return d, err
		}
		d.stops = append(d.stops, embedded.Close)
		d.redis = embedded.Addr()
		defaults["REDIS_URL"] = "redis://" + d.redis
	}
	if getenv("AUTH_URL") == "" {
		if d.page, err = listenAfter(cmp.Or(getenv("ADDR"), defaults["ADDR"]), getenv("METRICS_ADDR")); err != nil {
			return d, fmt.Errorf("listening for the sandbox: %w", err)
		}
		d.stops = append(d.stops, func() { _ = d.page.Close() })
		defaults["AUTH_URL"] = d.pageURL()
	}
	d.config, err = loadConfig(func(name string) string { return cmp.Or(getenv(name), defaults[name]) })
	if err != nil {
		return d, err
	}
	if err := d.makeKey(keySetFile); err != nil {
		return d, fmt.Errorf("making a key: %w", err)
	}
	return d, nil
}

// pageURL is the sandbox's. It has a name for its host, so that frames of other pages on this machine are of one site
// with it.
func (d *dev) pageURL() string {
	_, port, _ := net.SplitHostPort(d.page.Addr().String())
	return "http://localhost:" + port + "/"
}

// listening adds to s, which listens on addr, what only -dev has, and tells how to use it all.
func (d *dev) listening(s *server, addr net.Addr) error {
	at := netip.MustParseAddrPort(addr.String())
	if at.Addr().IsUnspecified() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	token, err := d.issue("dev", min(24*time.Hour, d.config.tokens.MaxLifetime))
	if err != nil {
		return fmt.Errorf("making a token: %w", err)
	}
	s.issue = func(client string) (string, time.Duration, error) {
		lifetime := min(15*time.Minute, d.config.tokens.MaxLifetime)
		token, err := d.issue(client, lifetime)
		return token, lifetime, err
	}
	api, page, body := "http://"+at.String(), "as AUTH_URL says", sandbox.Example("https://acme.com/")
	if d.page != nil {
		page, body = "a sandbox, "+d.pageURL()+" (it creates sessions, too)", sandbox.Example(d.pageURL())
		s.made = d.serveSandbox(api, token)
	}
	_, err = fmt.Fprintf(d.stdout, `Service: %s
Redis: %s
Platform: POST /token (any client_id and client_secret) and POST /end-users stand in for it
Consent page: %s

curl -sS -X POST %s/auth/session \
  -H 'Authorization: Bearer %s' \
  -H 'Content-Type: application/json' \
  -d '%s'

`, api, d.redis, page, api, token, body)
	return err
}

// listenAfter listens on this machine alone: on the port after addr's where it is free and not that of taken, then on
// the one after it, else on any.
func listenAfter(addr, taken string) (net.Listener, error) {
	_, text, _ := net.SplitHostPort(addr)
	_, not, _ := net.SplitHostPort(taken)
	port, _ := strconv.Atoi(text)
	for i := 1; i <= 2 && port > 0; i++ { // 0 is any
		next := strconv.Itoa(port + i)
		if next == not {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", next)); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// serveSandbox serves the consent page over a Redis client of its own. made tells it of a session.
func (d *dev) serveSandbox(api, token string) (made func(secret string)) {
	c := d.config
	log := slog.New(slog.NewJSONHandler(d.stderr, &slog.HandlerOptions{Level: c.logLevel}))
	client := c.redis.Open(c.storeTimeout)
	page := sandbox.New(client, c.keyPrefix, c.storeTimeout, log)
	srv := newHTTPServer(page.Handler(d.pageURL(), api, token), c.storeTimeout, log)
	go func() { _ = srv.Serve(d.page) }()
	d.stops = append(d.stops, func() { _, _ = srv.Close(), client.Close() })
	return page.Made
}

// makeKey makes the key of this run and writes its key set to file.
func (d *dev) makeKey(file string) (err error) {
	algorithms := d.config.tokens.Algorithms
	if d.key, err = keytool.Generate(algorithms[len(algorithms)-1]); err != nil {
		return err
	}
	set, err := d.key.Set()
	if err != nil {
		return err
	}
	return os.WriteFile(file, set, 0o600)
}

// issue returns a client's token that passes the service's checks for lifetime.
func (d *dev) issue(client string, lifetime time.Duration) (string, error) {
	c := d.config.tokens
	claims := map[string]string{"scope": bearer.Scope, "iss": c.Issuer, "aud": c.Audience}
	name := c.ClientClaims[0]
	claims[name] = cmp.Or(claims[name], client)
	return d.key.Issue(lifetime, claims)
}
