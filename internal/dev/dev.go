// Package dev runs authsession -dev: it starts what the service needs and stands in for the rest of the platform.
//
// It has an embedded Redis, a key of its own with its key set, POST /token and /end-users, errors that say more, errors
// on demand, and the sandbox, which plays the consent page. The service knows none of it, because Wrap stands in front
// of the service's handler.
package dev

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/config"
	"authsession/internal/keytool"

	"github.com/alicebob/miniredis/v2"
)

// Dev is a development environment for one service.
type Dev struct {
	Config config.Config // the environment's variables, completed with what Start has started

	stdout   io.Writer
	log      *slog.Logger
	key      keytool.Key
	keyFrom  string           // as printed
	verifier *bearer.Verifier // of tokens for /end-users, and for the reasons in a 401
	redis    string           // address, as printed
	page     net.Listener     // the sandbox's; nil if AUTH_URL is set
	pageURL  string           // of the sandbox
	sandbox  *sandbox         // nil if AUTH_URL is set
	cleanups []func()         // run in reverse order by Stop
}

// Start starts what the variables do not name: an embedded Redis without REDIS_URL, the sandbox's listener without
// AUTH_URL, and always a key, so JWKS_URL must not be set. Call Stop after an error, too.
func Start(getenv func(string) string, stdout, stderr io.Writer) (*Dev, error) {
	fmt.Fprint(stdout, "authsession -dev starts the service with all it needs, for development only.\n\n")
	d := &Dev{stdout: stdout, redis: "as REDIS_URL says"}
	if getenv("JWKS_URL") != "" {
		return d, errors.New("-dev makes its own key and does not run with JWKS_URL set")
	}
	keySet, err := os.CreateTemp("", "authsession-dev-*.json")
	if err != nil {
		return d, fmt.Errorf("creating the key set's file: %w", err)
	}
	d.cleanup(func() { _, _ = keySet.Close(), os.Remove(keySet.Name()) })
	defaults := map[string]string{"ADDR": "127.0.0.1:8080", "JWKS_URL": "file://" + keySet.Name(),
		"JWT_ISSUER": "authsession-dev", "JWT_AUDIENCE": "authsession-dev"} // checked, as in production
	if getenv("REDIS_URL") == "" {
		embedded := miniredis.NewMiniRedis()
		embedded.ClockTTL(true) // keys expire by the machine's clock; slow with thousands of keys: each command checks all
		if err := embedded.StartAddr("127.0.0.1:0"); err != nil {
			return d, fmt.Errorf("starting the embedded redis: %w", err)
		}
		d.cleanup(embedded.Close)
		d.redis = embedded.Addr()
		defaults["REDIS_URL"] = "redis://" + d.redis
	}
	if getenv("AUTH_URL") == "" {
		if d.page, err = listenAfter(cmp.Or(getenv("ADDR"), defaults["ADDR"]), getenv("METRICS_ADDR")); err != nil {
			return d, fmt.Errorf("listening for the sandbox: %w", err)
		}
		d.cleanup(func() { _ = d.page.Close() })
		_, port, _ := net.SplitHostPort(d.page.Addr().String())
		d.pageURL = "http://localhost:" + port + "/" // no address, so that pages of localhost that frame it are same-site
		defaults["AUTH_URL"] = d.pageURL
	}
	d.Config, err = config.Load(func(name string) string { return cmp.Or(getenv(name), defaults[name]) })
	if err != nil {
		return d, err
	}
	d.log = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: d.Config.LogLevel}))
	return d, d.makeKey(keySet)
}

// makeKey makes the key, writes its key set to w, the file that JWKS_URL names, and starts the verifier.
func (d *Dev) makeKey(w io.Writer) (err error) {
	algorithms := d.Config.Tokens.Algorithms
	if d.key, err = keytool.Generate(algorithms[len(algorithms)-1]); err != nil { // EdDSA by default, made at once
		return err
	}
	d.keyFrom = d.keepKey()
	set, err := d.key.Set()
	if err == nil {
		_, err = w.Write(set)
	}
	if err != nil {
		return fmt.Errorf("writing the key set: %w", err)
	}
	d.verifier = bearer.New(d.Config.Tokens, slog.New(slog.DiscardHandler)) // discards, because the service's own logs
	ctx, cancel := context.WithCancel(context.Background())
	d.cleanup(cancel)
	go d.verifier.Run(ctx)
	return d.verifier.WaitReady(ctx)
}

func (d *Dev) cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

// Stop ends what Start and Wrap have started.
func (d *Dev) Stop() {
	for _, f := range slices.Backward(d.cleanups) {
		f()
	}
}

// Wrap returns service with the platform's paths in front of it. It is called once, when the service listens on addr:
// it starts the sandbox and prints how to use it all.
func (d *Dev) Wrap(addr net.Addr, service http.Handler) (http.Handler, error) {
	api := "http://" + strings.Replace(addr.String(), "[::]", "127.0.0.1", 1) // [::] is all addresses
	body := exampleBody("https://acme.com/")
	if d.page != nil {
		body = exampleBody(d.pageURL)
		d.serveSandbox(api)
		fmt.Fprintf(d.stdout, "Open %s\n", d.pageURL)
	}
	if d.Config.Clients.Find("dev") == nil {
		fmt.Fprintln(d.stdout, "CLIENTS_FILE does not list the client dev, so the page and the command below get 403.")
	}
	_, err := fmt.Fprintf(d.stdout, `API: %s (POST /token gives tokens for any client_id and client_secret)
Redis: %s
Key: %s

%s

The log follows on stderr, as JSON.

`, api, d.redis, d.keyFrom, curl(api+"/auth/session", d.issue("dev", 24*time.Hour), body))
	return d.platform(d.explainErrors(service)), err
}

// issue returns a token of client that the service accepts for lifetime, or for JWT_MAX_LIFETIME if that is shorter.
func (d *Dev) issue(client string, lifetime time.Duration) string {
	c := d.Config.Tokens
	claims := map[string]string{c.ScopeClaims[0]: bearer.Scope, "iss": c.Issuer, "aud": c.Audience}
	name := c.ClientClaims[0]
	claims[name] = cmp.Or(claims[name], client) // JWT_CLIENT_CLAIM may begin with iss or aud
	token, err := d.key.Issue(min(lifetime, c.MaxLifetime), claims)
	if err != nil {
		panic(err) // impossible: the key fits its algorithm, and claims are texts
	}
	return token
}

// serveSandbox starts the sandbox, with a Redis client of its own.
func (d *Dev) serveSandbox(api string) {
	client := d.Config.Redis.Open(d.Config.StoreTimeout)
	d.sandbox = &sandbox{redis: client, keyPrefix: d.Config.KeyPrefix, log: d.log,
		url: d.pageURL, api: api, formKey: []byte(rand.Text()),
		issue: func() string { return d.issue("dev", 24*time.Hour) }}
	srv := &http.Server{
		Handler:      d.sandbox.routes(),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 30*time.Second + d.Config.StoreTimeout,
		ErrorLog:     slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	go func() { _ = srv.Serve(d.page) }()
	d.cleanup(func() { _, _ = srv.Close(), client.Close() })
}

// listenAfter listens on 127.0.0.1, on the port after addr's if that is free and not reserved's, or else on any port.
func listenAfter(addr, reserved string) (net.Listener, error) {
	_, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text) // 0 is any port
	if next := ":" + strconv.Itoa(port+1); port > 0 && !strings.HasSuffix(reserved, next) {
		if l, err := net.Listen("tcp", "127.0.0.1"+next); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}
