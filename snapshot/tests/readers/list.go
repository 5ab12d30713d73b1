// Lists every file of a directory as Go's archive/tar reads it: its sha256, a verdict, and size and
// name of each entry.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	paths, err := filepath.Glob(filepath.Join(os.Args[1], "*"))
	if err != nil {
		panic(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		list, err := list(data)
		verdict := "read"
		if err != nil {
			verdict, list = "refused", nil
		}
		fmt.Printf("%x\n%s\n", sha256.Sum256(data), verdict)
		for _, line := range list {
			fmt.Println(line)
		}
		fmt.Println()
	}
}

func list(data []byte) ([]string, error) {
	reader := tar.NewReader(bytes.NewReader(data))
	var lines []string
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		size := int64(0)
		if header.FileInfo().Mode().IsRegular() && header.Typeflag != tar.TypeLink {
			size = header.Size
		}
		if _, err := io.Copy(io.Discard, reader); err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("%d %s", size, escape(header.Name)))
	}
}

func escape(name string) string {
	plain := map[byte]string{'\\': `\\`, '\n': `\n`, '\t': `\t`, '\r': `\r`, 7: `\a`, 8: `\b`, 11: `\v`, 12: `\f`}
	var out bytes.Buffer
	for at := 0; at < len(name); at++ {
		switch text, special := plain[name[at]]; {
		case special:
			out.WriteString(text)
		case name[at] >= ' ' && name[at] <= '~':
			out.WriteByte(name[at])
		default:
			fmt.Fprintf(&out, `\%03o`, name[at])
		}
	}
	return out.String()
}
