// Package strictjson reads the JSON objects of callers: request bodies, token headers and claims.
//
// It accepts what RFC 8259 calls a JSON text, if that is one object, and refuses all that two parsers may read
// differently: invalid UTF-8, unpaired surrogate escapes, a member name given twice in one object, and deep nesting.
// Names match letter for letter. (encoding/json replaces bad UTF-8, takes the last of two equal names and null for an
// object, and matches names in any case.)
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is how many objects and arrays may lie inside one another, the outermost object included.
const maxDepth = 1000

// The errors are worded to follow what was read: "the body must be UTF-8".
var (
	errNotUTF8    = errors.New("must be UTF-8")
	errNotObject  = errors.New("must be one JSON object")
	errSyntax     = errors.New("must be valid JSON without unpaired surrogate escapes, and nothing after the object")
	errNameTwice  = errors.New("must not give a member name twice in one object")
	errTooDeep    = fmt.Errorf("must not nest deeper than %d levels", maxDepth)
	errNotString  = errors.New("must be a string")
	errNotStrings = errors.New("must be an array of strings")
)

// decoders are reused: with a new one for each body a usual body takes a third longer (0.79 µs against 0.59).
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// Object calls member for each member of the one JSON object that data is, in the order given. The name is unescaped;
// the value is the part of data where it stands. An error may come after some calls.
func Object(data []byte, member func(name, value []byte)) error {
	if !utf8.Valid(data) {
		return errNotUTF8
	}
	d := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(d)
	d.Reset(bytes.NewBuffer(data))
	if d.PeekKind() != '{' {
		return errNotObject
	}
	if _, err := d.ReadToken(); err != nil {
		return reason(err)
	}
	for d.PeekKind() != '}' {
		name, err := next(d, data)
		if err != nil {
			return reason(err)
		}
		value, err := next(d, data)
		if err != nil {
			return reason(err)
		}
		member(unquote(name), value)
	}
	if _, err := d.ReadToken(); err != nil {
		return reason(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errSyntax
	}
	return nil
}

// next reads a name or a value, and returns the part of data where it stands. It reads token by token, since the
// decoder's own limit on nesting is ten times ours.
func next(d *jsontext.Decoder, data []byte) ([]byte, error) {
	for before, depth := d.InputOffset(), d.StackDepth(); ; {
		if _, err := d.ReadToken(); err != nil {
			return nil, err
		}
		switch now := d.StackDepth(); {
		case now > maxDepth:
			return nil, errTooDeep
		case now == depth:
			return bytes.TrimLeft(data[before:d.InputOffset()], ",: \t\r\n"), nil
		}
	}
}

// reason is the decoder's error in our words. The decoder's own quote what they were given.
func reason(err error) error {
	switch {
	case err == errTooDeep:
		return err
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errNameTwice
	}
	return errSyntax
}

// Text returns the string that a value given by Object is. null and nil, an absent value, count as ""; any other value
// is an error.
func Text(value []byte) (string, error) {
	switch jsontext.Value(value).Kind() {
	case '"':
		return string(unquote(value)), nil
	case 'n', 0:
		return "", nil
	}
	return "", errNotString
}

// Texts returns the strings of the array that a value given by Object is, for null and nil, an absent value, nil. Any
// other value, or an array that has anything but strings, is an error.
func Texts(value []byte) ([]string, error) {
	if len(value) == 0 {
		return nil, nil
	}
	var elements []jsontext.Value
	if err := json.Unmarshal(value, &elements); err != nil {
		return nil, errNotStrings
	}
	if elements == nil {
		return nil, nil
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		if element.Kind() != '"' {
			return nil, errNotStrings
		}
		texts[i] = string(unquote(element))
	}
	return texts, nil
}

// unquote returns what a valid JSON string says. Most strings have no escape and are not copied.
func unquote(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	text, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		panic(err) // a decoder has found it valid
	}
	return text
}
