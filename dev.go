package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// runDev serves with nothing set up. What the environment does not say it fills in: an
// embedded Redis, the key set of a key made for this run, in a file like any other, and
// a consent page.
func runDev(ctx context.Context, getenv func(string) string, stdout, stderr io.Writer) error {
	if getenv("JWKS_URL") != "" {
		return errors.New("-dev makes its own key and does not run with JWKS_URL set")
	}
	dir, err := os.MkdirTemp("", "authsession-dev")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	keySetFile := filepath.Join(dir, "jwks.json")
	defaults := map[string]string{
		"ADDR":     "127.0.0.1:8080",
		"JWKS_URL": "file://" + keySetFile,
	}
	redisAddr := "as REDIS_URL says"
	if getenv("REDIS_URL") == "" {
		embedded, err := startEmbeddedRedis()
		if err != nil {
			return err
		}
		defer embedded.Close()
		redisAddr = embedded.Addr()
		defaults["REDIS_URL"] = "redis://" + redisAddr
	}
	consentPage := "as AUTH_URL says"
	var sandboxListener net.Listener
	if getenv("AUTH_URL") == "" {
		if sandboxListener, err = listenAfter(cmp.Or(getenv("ADDR"), defaults["ADDR"])); err != nil {
			return fmt.Errorf("listening for the sandbox: %w", err)
		}
		defer sandboxListener.Close()
		defaults["AUTH_URL"] = "http://" + sandboxListener.Addr().String() + "/"
		consentPage = "a sandbox, " + defaults["AUTH_URL"] + " (open the auth_url that the command below prints)"
	}
	cfg, err := loadConfig(func(name string) string { return cmp.Or(getenv(name), defaults[name]) })
	if err != nil {
		return err
	}
	if sandboxListener != nil {
		defer serveSandbox(sandboxListener, cfg, stderr)()
	}
	token, err := makeKeyAndToken(cfg, keySetFile)
	if err != nil {
		return fmt.Errorf("making a key and a token: %w", err)
	}
	return serve(ctx, cfg, stderr, func(addr net.Addr) error {
		at := netip.MustParseAddrPort(addr.String())
		if at.Addr().IsUnspecified() {
			at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
		}
		_, err := fmt.Fprintf(stdout, `authsession -dev, for development only: http://%s
Redis: %s
Consent page: %s

curl -sS -X POST http://%s/auth/session \
  -H 'Authorization: Bearer %s' \
  -H 'Content-Type: application/json' \
  -d '{"end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "redirect_uri": "https://acme.com/success", "cancel_uri": "https://acme.com/cancel"}'

`, at, redisAddr, consentPage, at, token)
		return err
	})
}

// listenAfter listens on this machine alone: on the port after that of addr where it is
// free, else on any.
func listenAfter(addr string) (net.Listener, error) {
	_, text, _ := net.SplitHostPort(addr)
	if port, _ := strconv.Atoi(text); port > 0 { // 0 is any
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+1))); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// serveSandbox serves the sandbox over a Redis client of its own, until stop is called.
func serveSandbox(l net.Listener, cfg config, stderr io.Writer) (stop func()) {
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
	store := openStore(cfg.redis, cfg.keyPrefix, cfg.storeTimeout, log)
	srv := newHTTPServer(newSandbox(store, log).routes(), cfg.storeTimeout, log)
	go func() { _ = srv.Serve(l) }()
	return func() { _, _ = srv.Close(), store.close() }
}

// startEmbeddedRedis runs miniredis until it is closed. Its clock stands still between
// our ticks, so that what it says of a key's expiry is exact.
func startEmbeddedRedis() (*miniredis.Miniredis, error) {
	m := miniredis.NewMiniRedis()
	m.SetTime(time.Now().Round(0)) // Round drops the monotonic reading
	m.ClockTTL(true)
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("starting the embedded redis: %w", err)
	}
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if m.Ctx.Err() != nil { // closed
				return
			}
			m.SetTime(time.Now().Round(0))
		}
	}()
	return m, nil
}

// makeKeyAndToken writes the key set of a new key to file, and returns a token by that
// key that passes cfg's checks, for as long as they let it, a day at most.
func makeKeyAndToken(cfg config, file string) (string, error) {
	alg := cfg.algorithms[len(cfg.algorithms)-1]
	key, err := generateKey(alg)
	if err != nil {
		return "", err
	}
	set, err := publicKeySet(alg, key)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file, encodeJSON(set), 0o600); err != nil {
		return "", err
	}
	claims := map[string]string{"scope": scope, "iss": cfg.issuer, "aud": cfg.audience}
	client := cfg.clientClaims[0]
	claims[client] = cmp.Or(claims[client], "dev")
	return issueToken(alg, key, min(24*time.Hour, cfg.maxLifetime), claims)
}
