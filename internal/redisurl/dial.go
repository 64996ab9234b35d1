package redisurl

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// While an address fails it is dialed a dozen times a second at most, and is back so much later.
	redialAfter = 80 * time.Millisecond
	// A SYN that nobody answers is sent again after a second. Another attempt beside it finds an address that has come
	// back sooner.
	attemptAfter = 250 * time.Millisecond
)

// dialer makes a client's connections. An address fails where dialing it fails, or where the connection ends before its
// first reply, as behind a proxy that has lost its Redis. Until a reply comes from there, it is dialed again by one
// caller at a time, redialAfter the last one, while the others get the last error at once.
//
// A failure is a connection that fails, and no error, since go-redis counts errors: after as many as its pool has
// places, over the life of the process, it dials once a second and no more.
type dialer struct {
	secure  *tls.Config // nil: no TLS
	timeout time.Duration
	retried bool                     // a failure is to be tried again, which in a cluster leads to another node
	deposed *atomic.Pointer[deposed] // nil: none ever is
	connect func(ctx context.Context, network, addr string) (net.Conn, error)

	mu      sync.Mutex
	failing map[string]*failure // by address
}

type failure struct {
	err  error // the last one
	next time.Time
}

func newDialer(secure *tls.Config, timeout time.Duration) *dialer {
	// A peer that is gone is known after 45 s; no NAT forgets a connection that is used each 30 s.
	alive := net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3}
	return &dialer{secure: secure, timeout: timeout, failing: map[string]*failure{},
		connect: (&net.Dialer{KeepAliveConfig: alive}).DialContext}
}

// dial is go-redis's Dialer. Its error is nil.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.refuses(addr) {
		return d.noConn(ErrDeposed), nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	d.mu.Lock()
	f := d.failing[addr]
	if f != nil && time.Now().Before(f.next) {
		defer d.mu.Unlock()
		return d.noConn(f.err), nil
	}
	if f != nil {
		f.next = time.Now().Add(d.timeout + redialAfter) // others wait for us
	}
	d.mu.Unlock()
	c, err := d.open(ctx, network, addr)
	if err != nil {
		d.fail(addr, err)
		return d.noConn(err), nil
	}
	if f != nil {
		d.mu.Lock()
		f.next = time.Now().Add(redialAfter)
		d.mu.Unlock()
	}
	watched := &conn{replies: replies{Conn: c}, dialer: d, addr: addr}
	if raw, ok := c.(syscall.Conn); ok {
		return plainConn{watched, raw}, nil
	}
	return watched, nil
}

// open dials until a connection is there, ready to use.
func (d *dialer) open(ctx context.Context, network, addr string) (net.Conn, error) {
	attempts, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		conn net.Conn
		err  error
	}
	first := make(chan outcome)
	for {
		go func() {
			c, err := d.connect(attempts, network, addr)
			select {
			case first <- outcome{c, err}:
			case <-attempts.Done():
				if err == nil {
					_ = c.Close()
				}
			}
		}()
		select {
		case o := <-first:
			if o.err != nil || d.secure == nil {
				return o.conn, o.err
			}
			return d.handshake(ctx, o.conn, addr)
		case <-time.After(attemptAfter):
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
		}
	}
}

// handshake starts TLS. The certificate must be for the configured name, or else for the address.
func (d *dialer) handshake(ctx context.Context, c net.Conn, addr string) (net.Conn, error) {
	secure := d.secure
	if secure.ServerName == "" {
		secure = secure.Clone()
		secure.ServerName, _, _ = net.SplitHostPort(addr)
	}
	t := tls.Client(c, secure)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return t, nil
}

func (d *dialer) fail(addr string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(d.failing, func(_ string, f *failure) bool { return now.Sub(f.next) > time.Minute })
	d.failing[addr] = &failure{err, now.Add(redialAfter)}
}

func (d *dialer) recover(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failing, addr)
}

// conn is a connection that tells its dialer what came of it.
type conn struct {
	replies
	dialer *dialer
	addr   string
	told   atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.replies.Read(p)
	if c.dialer.refuses(c.addr) {
		return 0, ErrDeposed
	}
	c.tell(n > 0, err)
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if c.dialer.refuses(c.addr) {
		return 0, ErrDeposed
	}
	n, err := c.replies.Write(p)
	c.tell(false, err)
	return n, err
}

// tell leaves open what is too early to say. A reply that takes too long is no failure of the address: Redis may hang,
// and callers are to wait for it.
func (c *conn) tell(replied bool, err error) {
	netErr, ok := errors.AsType[net.Error](err)
	switch {
	case c.told.Load() || !replied && err == nil || ok && netErr.Timeout() || errors.Is(err, net.ErrClosed):
	case replied:
		c.told.Store(true)
		c.dialer.recover(c.addr)
	default:
		c.told.Store(true)
		c.dialer.fail(c.addr, err)
	}
}

// plainConn is a conn without TLS. go-redis looks through SyscallConn whether the peer has closed it meanwhile.
type plainConn struct {
	*conn
	syscall.Conn
}

// noConn stands for a connection that could not be had.
type noConn struct {
	net.Conn // of a pipe, for what does not matter
	err      error
}

func (d *dialer) noConn(err error) noConn {
	c, _ := net.Pipe()
	if !d.retried {
		err = final{err}
	}
	return noConn{c, err}
}

func (c noConn) Read([]byte) (int, error)              { return 0, c.err }
func (c noConn) Write([]byte) (int, error)             { return 0, c.err }
func (c noConn) SyscallConn() (syscall.RawConn, error) { return nil, c.err } // so the pool does not keep it

// final is an error that go-redis does not try again: it knows connections' errors by their type, and takes a deadline
// for its caller's. While an address fails nothing can come of that, and it would multiply: a connection's own first
// command is tried again too.
type final struct{ err error }

func (e final) Error() string { return e.err.Error() }

func (e final) Is(target error) bool {
	netErr, ok := errors.AsType[net.Error](e.err)
	return target == context.DeadlineExceeded && ok && netErr.Timeout() || target == ErrDeposed && e.err == ErrDeposed
}

// As finds nothing but the system's error.
func (e final) As(target any) bool {
	_, ok := target.(*syscall.Errno)
	return ok && errors.As(e.err, target)
}

// DialHook makes d the hook of a client in sentinel mode. There go-redis itself asks for the primary's address before
// it calls dial, and may have no answer.
func (d *dialer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := next(ctx, network, addr)
		if err != nil {
			return d.noConn(err), nil
		}
		return c, nil
	}
}

// ProcessHook and ProcessPipelineHook change nothing.

func (d *dialer) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (d *dialer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
