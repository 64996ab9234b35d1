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
// a key made for this run, in a file like any other, and a consent page.
type dev struct {
	config config

	stdout      io.Writer
	redis       string   // where it is, for the printed text
	consentPage string   // the same
	token       string   // a working one
	stops       []func() // undo what was started
}

// stop undoes what startDev did, also where that failed.
func (d *dev) stop() {
	for _, stop := range slices.Backward(d.stops) {
		stop()
	}
}

func startDev(getenv func(string) string, stdout, stderr io.Writer) (*dev, error) {
	fmt.Fprintln(stdout, "authsession -dev starts the service with all it needs, for development only.")
	d := &dev{stdout: stdout, redis: "as REDIS_URL says", consentPage: "as AUTH_URL says"}
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
	var page net.Listener
	if getenv("AUTH_URL") == "" {
		if page, err = listenAfter(cmp.Or(getenv("ADDR"), defaults["ADDR"]), getenv("METRICS_ADDR")); err != nil {
			return d, fmt.Errorf("listening for the sandbox: %w", err)
		}
		d.stops = append(d.stops, func() { _ = page.Close() })
		_, port, _ := net.SplitHostPort(page.Addr().String())
		defaults["AUTH_URL"] = "http://localhost:" + port + "/"
		d.consentPage = "a sandbox, " + defaults["AUTH_URL"] + " (open the auth_url that the command below prints)"
	}
	d.config, err = loadConfig(func(name string) string { return cmp.Or(getenv(name), defaults[name]) })
	if err != nil {
		return d, err
	}
	if page != nil {
		d.serveSandbox(page, stderr)
	}
	if d.token, err = makeKeyAndToken(d.config, keySetFile); err != nil {
		return d, fmt.Errorf("making a key and a token: %w", err)
	}
	return d, nil
}

// listening tells how to use the service, which listens on addr.
func (d *dev) listening(addr net.Addr) error {
	at := netip.MustParseAddrPort(addr.String())
	if at.Addr().IsUnspecified() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	_, err := fmt.Fprintf(d.stdout, `Service: http://%s
Redis: %s
Consent page: %s

curl -sS -X POST http://%s/auth/session \
  -H 'Authorization: Bearer %s' \
  -H 'Content-Type: application/json' \
  -d '{"end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "redirect_uri": "https://acme.com/success", %s}'

`, at, d.redis, d.consentPage, at, d.token, `"cancel_uri": "https://acme.com/cancel"`)
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

// serveSandbox serves the consent page over a Redis client of its own.
func (d *dev) serveSandbox(l net.Listener, stderr io.Writer) {
	c := d.config
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: c.logLevel}))
	client := c.redis.Open(c.storeTimeout)
	page := sandbox.New(client, c.keyPrefix, c.storeTimeout, log)
	srv := newHTTPServer(page.Handler(), c.storeTimeout, log)
	go func() { _ = srv.Serve(l) }()
	d.stops = append(d.stops, func() { _, _ = srv.Close(), client.Close() })
}

// makeKeyAndToken writes the key set of a new key to file, and returns a token by that key that passes c's checks, for
// as long as they let it, a day at most.
func makeKeyAndToken(c config, file string) (string, error) {
	key, err := keytool.Generate(c.tokens.Algorithms[len(c.tokens.Algorithms)-1])
	if err != nil {
		return "", err
	}
	set, err := key.Set()
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file, set, 0o600); err != nil {
		return "", err
	}
	claims := map[string]string{"scope": bearer.Scope, "iss": c.tokens.Issuer, "aud": c.tokens.Audience}
	client := c.tokens.ClientClaims[0]
	claims[client] = cmp.Or(claims[client], "dev")
	return key.Issue(min(24*time.Hour, c.tokens.MaxLifetime), claims)
}
