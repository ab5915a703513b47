-- What every dissector of exproto-app's framings has. A framing is a function of bytes and a place in them; it
-- returns what begins there: "frame", where it ends, and the frame; "fill", where that ends; "wait"; or "wrong",
-- and where to go on, if that is known.

local function raw()
  return function(data, at)
    return "frame", #data + 1, data:sub(at)
  end
end

local function fixed(size)
  return function(data, at)
    if at + size - 1 > #data then return "wait" end
    return "frame", at + size, data:sub(at, at + size - 1)
  end
end

local function marked(marks, strip, several, finishes)
  return function(data, at, last)
    local first, behind
    for _, mark in ipairs(marks) do
      local place = data:find(mark, at, true)
      if place and (not first or place < first or (place == first and place + #mark > behind)) then
        first, behind = place, place + #mark
      end
    end
    if not first then
      if not last or not finishes then return "wait" end
      first, behind = #data + 1, #data + 1
    end
    if several and first == at then return "fill", behind end
    local frame = data:sub(at, first - 1)
    if strip and frame:sub(-1) == "\r" then frame = frame:sub(1, -2) end
    return "frame", behind, frame
  end
end

local function number(data, at, size, little)
  local value = 0
  for index = 0, size - 1 do
    local place = little and at + size - 1 - index or at + index
    value = value * 256 + data:byte(place)
  end
  return value
end

local function length(o)
  local header = o.offset + o.size
  return function(data, at)
    local start = data:sub(at, at + #o.start - 1)
    if start ~= o.start:sub(1, #start) then return "wrong" end
    if at + header - 1 > #data then return "wait" end
    local size = header + o.adjustment + #o.stop + number(data, at + o.offset, o.size, o.little)
    if size < header + #o.stop or size - o.strip > o.limit + #o.stop then return "wrong" end
    if at + size - 1 > #data then return "wait" end
    local whole = data:sub(at, at + size - 1)
    if #o.stop > 0 and whole:sub(-#o.stop) ~= o.stop then return "wrong" end
    local back = o.strip > 0 and #o.stop or 0
    local front = o.front or o.strip
    return "frame", at + size, whole:sub(front + 1, #whole - back)
  end
end

local function varint()
  return function(data, at)
    local size, scale, place = 0, 1, at
    while true do
      local byte = data:byte(place)
      if not byte then return "wait" end
      size = size + (byte % 128) * scale
      scale, place = scale * 128, place + 1
      if byte < 128 then break end
      if place > at + 4 then return "wrong" end
    end
    if place + size - 1 > #data then return "wait" end
    return "frame", place + size, data:sub(place, place + size - 1)
  end
end

local function octets()
  return function(data, at)
    local digits, space = data:match("^([1-9]%d*)( ?)", at)
    if not digits then return "wrong" end
    if space == "" then return #digits > 10 and "wrong" or "wait" end
    local begin = at + #digits + 1
    local size = tonumber(digits)
    if begin + size - 1 > #data then return "wait" end
    return "frame", begin + size, data:sub(begin, begin + size - 1)
  end
end

local function start_end(o)
  return function(data, at)
    local begin = at
    if data:sub(at, at + #o.start - 1) == o.start then
      begin = at + #o.start
      if o.shared then return "fill", begin end
    elseif not o.shared then
      local place = data:find(o.start, at, true)
      if not place and #data - at + 1 < #o.start then return "wait" end
      return "wrong", place
    end
    local stop = data:find(o.stop, begin, true)
    if not stop then return "wait" end
    if stop == begin and o.start == o.stop then return "fill", stop end
    local frame = data:sub(begin, stop - 1)
    if o.lead then
      local good = true
      frame = frame:gsub(o.pattern, function(escape)
        local byte = o.escapes[escape]
        good = good and byte ~= nil
        return byte
      end)
      if not good then return "wrong", stop + o.behind end
    end
    return "frame", stop + o.behind, frame
  end
end

local function json()
  return function(data, at)
    local space = data:match("^[ \t\r\n]+()", at)
    if space then return "fill", space end
    if not data:match("^[{%[]", at) then return "wrong", data:match("^[^{%[ \t\r\n]+()", at) end
    local depth, place, inside = 0, at, false
    while place <= #data do
      local sign = data:sub(place, place)
      if inside then
        if sign == "\\" then place = place + 1 elseif sign == '"' then inside = false end
      elseif sign == '"' then
        inside = true
      elseif sign == "{" or sign == "[" then
        depth = depth + 1
      elseif sign == "}" or sign == "]" then
        depth = depth - 1
        if depth == 0 then return "frame", place + 1, data:sub(at, place) end
      end
      place = place + 1
    end
    return "wait"
  end
end

local function skip(inner, fills)
  return function(data, at, last)
    local place, found = at, true
    while found do
      found = false
      for _, fill in ipairs(fills) do
        if data:sub(place, place + #fill - 1) == fill then
          place, found = place + #fill, true
        end
      end
    end
    if place > at then return "fill", place end
    return inner(data, at, last)
  end
end

local function first_of(choices)
  return function(data, at, last)
    for _, choice in ipairs(choices) do
      for _, start in ipairs(choice.starts) do
        local piece = data:sub(at, at + #start - 1)
        if piece == start then return choice.framing(data, at, last) end
        if not last and #piece < #start and piece == start:sub(1, #piece) then return "wait" end
      end
    end
    return "wrong"
  end
end

local function resync(inner, starts)
  return function(data, at, last)
    local kind, behind, frame = inner(data, at, last)
    if kind ~= "wrong" then return kind, behind, frame end
    local place
    for _, start in ipairs(starts) do
      local found = data:find(start, at + 1, true)
      if found and (not place or found < place) then place = found end
    end
    return "wrong", place
  end
end

local function crc(width, poly, init, reflected, xorout)
  local function turned(value, bits)
    local result = 0
    for _ = 1, bits do
      result = result * 2 + value % 2
      value = math.floor(value / 2)
    end
    return result
  end
  local top, all = 2 ^ (width - 1), 2 ^ width
  local function xor(a, b)
    local low = bit.bxor(a % 65536, b % 65536) % 65536
    local high = bit.bxor(math.floor(a / 65536), math.floor(b / 65536)) % 65536
    return high * 65536 + low
  end
  return function(data)
    local register = init
    for index = 1, #data do
      local byte = data:byte(index)
      if reflected then byte = turned(byte, 8) end
      register = xor(register, byte * 2 ^ (width - 8))
      for _ = 1, 8 do
        local carry = register >= top
        register = (register * 2) % all
        if carry then register = xor(register, poly) end
      end
    end
    if reflected then register = turned(register, width) end
    return xor(register, xorout)
  end
end

local function xor8(data)
  local value = 0
  for index = 1, #data do value = bit.bxor(value, data:byte(index)) end
  return value
end

local function sum8(data)
  local value = 0
  for index = 1, #data do value = (value + data:byte(index)) % 256 end
  return value
end

local function checked(inner, o)
  local function written(value)
    if o.text then return (o.mark .. string.format("%0" .. 2 * o.size .. "X", value)) end
    local bytes = {}
    for index = 1, o.size do
      local place = o.little and index or o.size + 1 - index
      bytes[place] = string.char(value % 256)
      value = math.floor(value / 256)
    end
    return o.mark .. table.concat(bytes)
  end
  return function(data, at, last)
    local kind, behind, item = inner(data, at, last)
    if kind ~= "frame" or not o.sum then
      if kind == "frame" then item = item:sub(o.front + 1, #item - o.tail) end
      return kind, behind, item
    end
    local body, found = item:sub(1, #item - o.tail), item:sub(-o.tail)
    if #item < o.tail or found:upper() ~= (written(o.sum(body:sub(o.begin + 1))) .. o.stop):upper() then
      return "bad", behind, item
    end
    return "frame", behind, body:sub(o.front + 1)
  end
end
