package redisurl

import (
	"bytes"
	"errors"
	"net"
	"strconv"
	"strings"
)

// The limits of a reply. None of what the service asks for comes near them. CLUSTER SLOTS, the longest, has at most
// 16,384 members of some 300 bytes each.
const (
	maxLength = 64 << 10 // of a line or string in bytes, of an array in members
	maxDepth  = 8        // of arrays in arrays
	maxReply  = 8 << 20  // bytes
)

var (
	errNotRESP  = errors.New("redis's reply is not in its protocol")
	errTooLarge = errors.New("redis's reply is larger than any that is asked for")
)

// replies is a connection to Redis that fails at a reply over the limits. The Redis client believes the lengths in a
// reply: it takes as much memory, panics at one that is impossible, and overflows its stack where arrays nest deeply.
//
// A reply is a line, whose first byte is its kind; a line "$n" has n bytes and an end of line behind it, and "*n" n
// replies. So a look at the lines is enough, wherever reads split them. (RESP3's other kinds are for the sentinels: to
// them go-redis speaks that.)
type replies struct {
	net.Conn
	line   []byte // the beginning of the line under way
	string int    // bytes still to come of the string under way, its end of line included
	arrays []int  // members still to come of each array under way, the innermost last
	size   int    // bytes of the reply under way
	err    error  // why it has failed
}

func (r *replies) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.Conn.Read(p)
	if r.err = r.follow(p[:n]); r.err != nil {
		return 0, r.err
	}
	return n, err
}

// follow takes note of what has been read.
func (r *replies) follow(p []byte) error {
	for len(p) > 0 {
		n := r.string
		if n == 0 {
			n = bytes.IndexByte(p, '\n') + 1
		}
		whole := 0 < n && n <= len(p) // the line or string ends here
		if !whole {
			n = len(p)
		}
		if r.size += n; r.size > maxReply {
			return errTooLarge
		}
		if r.string > 0 {
			r.string -= n
		} else if r.line = append(r.line, p[:n]...); len(r.line) > maxLength {
			return errTooLarge
		} else if whole {
			var err error
			if whole, err = r.header(bytes.TrimSuffix(r.line, []byte("\r\n"))); err != nil {
				return err
			}
			r.line = r.line[:0]
		}
		if whole {
			r.end()
		}
		p = p[n:]
	}
	return nil
}

// header takes a line. whole tells whether it is all of a reply.
func (r *replies) header(line []byte) (whole bool, err error) {
	if len(line) == 0 {
		return false, errNotRESP
	}
	kind := line[0]
	if strings.IndexByte("+-:_#,(", kind) >= 0 {
		return true, nil
	}
	n, err := strconv.Atoi(string(line[1:]))
	switch {
	case errors.Is(err, strconv.ErrRange) || n > maxLength:
		return false, errTooLarge
	case err != nil || n < -1:
		return false, errNotRESP
	case n < 0:
		return true, nil
	}
	switch kind {
	case '$', '=', '!':
		r.string = n + len("\r\n")
		return false, nil
	case '*', '~', '>':
	case '%':
		n *= 2
	case '|': // stands before the reply that it is about
		n = 2*n + 1
	default:
		return false, errNotRESP
	}
	if n == 0 {
		return true, nil
	}
	if len(r.arrays) == maxDepth {
		return false, errTooLarge
	}
	r.arrays = append(r.arrays, n)
	return false, nil
}

// end takes note of the end of a reply, and so of those of arrays whose last member it is.
func (r *replies) end() {
	for i := len(r.arrays) - 1; i >= 0; i-- {
		if r.arrays[i]--; r.arrays[i] > 0 {
			return
		}
		r.arrays = r.arrays[:i]
	}
	r.size = 0
}
