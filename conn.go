package main

import "net"

// callers is a TCP listener whose connections are conns.
type callers struct{ net.Listener }

func (l callers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{TCPConn: c.(*net.TCPConn)}, nil
}

// conn is a caller's connection. While a request is in work net/http reads one byte ahead,
// to end the request's context when the caller goes away. No handler looks at that, and
// the read, parked and woken again, costs a twentieth of all requests per second.
type conn struct {
	*net.TCPConn
	idled bool // the last Read was
}

// Read reads nothing (0 and nil, as io.Reader allows) where asked for one byte, unless
// it is asked again. net/http never reads a connection twice at a time.
func (c *conn) Read(p []byte) (int, error) {
	if c.idled = len(p) == 1 && !c.idled; c.idled {
		return 0, nil
	}
	return c.TCPConn.Read(p)
}
