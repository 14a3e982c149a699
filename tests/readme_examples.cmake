# Checks that README.md holds examples/readme_example.cpp and .c to the letter, each as one fenced code block.
# Called with -DREADME=FILE -DEXAMPLES=DIR.
cmake_minimum_required(VERSION 3.22)
file(READ "${README}" readme)
foreach(extension cpp c)
  file(READ "${EXAMPLES}/readme_example.${extension}" example)
  string(FIND "${readme}" "\n```${extension}\n${example}```\n" position)
  if(position EQUAL -1)
    message(SEND_ERROR "README.md has no block ```${extension} that equals examples/readme_example.${extension}")
  endif()
endforeach()
