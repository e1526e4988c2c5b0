// Verifies licences as docs/licences.md describes them, and shares no code with commerce/: what both say of the same bytes is compared under
// fuzzing. Reads one question as JSON from each line of standard input, and writes one word for each.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

type question struct {
	Licence     []byte   `json:"licence"`
	Revocations []byte   `json:"revocations"`
	Licences    []string `json:"licenceKeys"`
	Lists       []string `json:"revocationKeys"`
	Now         string   `json:"now"`
	Sequence    uint64   `json:"sequence"`
	Latest      string   `json:"latest"`
}

type licence struct {
	ID           string   `json:"id"`
	NotBefore    string   `json:"notBefore"`
	Expires      *string  `json:"expires"`
	MaxStaleness *int64   `json:"maxStalenessSeconds"`
	Grace        int64    `json:"graceSeconds"`
	Critical     []string `json:"critical"`
}

type list struct {
	Sequence uint64   `json:"sequence"`
	IssuedAt string   `json:"issuedAt"`
	Expires  string   `json:"expires"`
	Salt     string   `json:"salt"`
	Revoked  []string `json:"revoked"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	out := bufio.NewWriter(os.Stdout)
	for in.Scan() {
		var q question
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(out, verify(q))
		out.Flush()
	}
}

// open checks a note of one kind by Go's own implementation of signed notes, and says what is wrong in a word.
func open(kind string, text []byte, keys []string, into any) string {
	if !utf8.Valid(text) {
		return "malformed"
	}
	// One signature, and three lines of text.
	lines := strings.Split(string(text), "\n")
	if len(lines) != 5 || lines[0] != kind || lines[2] != "" || lines[4] != "" || !strings.HasPrefix(lines[3], "\u2014 ") {
		return "malformed"
	}
	var verifiers []note.Verifier
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return "unknown-key"
		}
		verifiers = append(verifiers, verifier)
	}
	_, err := note.Open(text, note.VerifierList(verifiers...))
	switch err.(type) {
	case nil:
	case *note.UnverifiedNoteError:
		return "unknown-key"
	case *note.InvalidSignatureError:
		return "bad-signature"
	default:
		return "malformed"
	}
	decoder := json.NewDecoder(strings.NewReader(lines[1]))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil || json.Unmarshal([]byte(lines[1]), into) != nil {
		return "malformed"
	}
	if canonical(value) != lines[1] {
		return "not-canonical"
	}
	return ""
}

// canonical writes JSON as RFC 8785 says; numbers here are whole.
func canonical(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return fmt.Sprint(value)
	case json.Number:
		return value.String()
	case string:
		return quoted(value)
	case []any:
		parts := make([]string, len(value))
		for i, one := range value {
			parts[i] = canonical(one)
		}
		return "[" + strings.Join(parts, ",") + "]"
	case map[string]any:
		names := make([]string, 0, len(value))
		for name := range value {
			names = append(names, name)
		}
		sort.Slice(names, func(i, j int) bool {
			a, b := utf16.Encode([]rune(names[i])), utf16.Encode([]rune(names[j]))
			for k := range min(len(a), len(b)) {
				if a[k] != b[k] {
					return a[k] < b[k]
				}
			}
			return len(a) < len(b)
		})
		parts := make([]string, len(names))
		for i, name := range names {
			parts[i] = quoted(name) + ":" + canonical(value[name])
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	panic(fmt.Sprintf("%T", value))
}

func quoted(text string) string {
	var out bytes.Buffer
	out.WriteByte('"')
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	for _, r := range text {
		switch escape, ok := short[r]; {
		case ok:
			out.WriteString(escape)
		case r < 0x20:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

func at(text string) time.Time {
	moment, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return moment
}

func verify(q question) string {
	var l licence
	if bad := open("vitrine.dev/licence/v1", q.Licence, q.Licences, &l); bad != "" {
		return bad
	}
	if len(l.Critical) > 0 {
		return "unknown-critical"
	}
	now := at(q.Now)
	var revocations *list
	if len(q.Revocations) > 0 {
		revocations = &list{}
		if open("vitrine.dev/revocations/v1", q.Revocations, q.Lists, revocations) != "" {
			return "revocations-bad"
		}
		for i := 1; i < len(revocations.Revoked); i++ {
			if revocations.Revoked[i-1] >= revocations.Revoked[i] {
				return "revocations-bad"
			}
		}
	}
	if now.Add(5 * time.Minute).Before(at(l.NotBefore)) {
		return "not-yet-valid"
	}
	var seen time.Time
	if q.Latest != "" {
		seen = at(q.Latest)
	}
	if revocations != nil && at(revocations.IssuedAt).After(seen) {
		seen = at(revocations.IssuedAt)
	}
	if now.Add(24 * time.Hour).Before(seen) {
		return "clock-turned-back"
	}
	if revocations != nil {
		if revocations.Sequence < q.Sequence {
			return "revocations-rolled-back"
		}
		entry := sha256.Sum256([]byte(revocations.Salt + "\n" + l.ID))
		for _, revoked := range revocations.Revoked {
			if revoked == hex.EncodeToString(entry[:]) {
				return "revoked"
			}
		}
	}
	if l.Expires != nil && !now.Before(at(*l.Expires)) {
		return "expired"
	}
	if l.MaxStaleness == nil {
		return "valid"
	}
	if revocations == nil {
		return "revocations-missing"
	}
	stale := at(revocations.IssuedAt).Add(time.Duration(*l.MaxStaleness) * time.Second)
	if expires := at(revocations.Expires); expires.Before(stale) {
		stale = expires
	}
	if now.After(stale.Add(time.Duration(l.Grace) * time.Second)) {
		return "revocations-stale"
	}
	return "valid"
}
